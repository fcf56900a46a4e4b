"""One way in for every command: flags from a dataclass, bad input as one line."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from utils.files import InputError

Config = TypeVar("Config")


def parse(config_class: type[Config], words: Sequence[str], positional: Sequence[str]) -> Config:
    """Turns command-line words into a configuration.

    Args:
        config_class: A dataclass; each field is an option.
        words: The command line without the program's name.
        positional: Options that the first words fill if they are no flags.

    Raises:
        InputError: There is no such option, or a value is out of its range.
        SystemExit: A value cannot be read, or help was asked for.
    """
    from transformers import HfArgumentParser

    rest, named = list(words), []
    for name in positional:
        if rest and not rest[0].startswith("-"):
            named += [f"--{name}", rest.pop(0)]
    parser = HfArgumentParser(config_class)
    config, unknown = parser.parse_args_into_dataclasses(
        [*named, *rest], return_remaining_strings=True
    )
    if unknown:
        raise InputError(f"unknown option {unknown[0]}; --help lists what there is")
    return config


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def run_command(
    config_class: type[Config], main: Callable[[Config], None], positional: Sequence[str] = ()
) -> None:
    """Parses the command line into `config_class` and calls `main` with it.

    Bad input (`InputError`) ends the process with exit status 2 and one line on standard error, and
    so does what the system refuses (a full disk, a folder that may not be written). On SIGTERM
    temporary files are removed and worker processes ended, as on SIGINT.
    """
    signal.signal(signal.SIGTERM, _end)
    # worker processes tokenise side by side; a pool of threads in each would only hinder
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()  # what loading reports is checked where it is loaded
    logging.disable_progress_bar()
    try:
        main(parse(config_class, sys.argv[1:], positional))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        print(f"error: {error.filename or 'system'}: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

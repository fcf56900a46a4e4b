"""One way in for every command: flags from a dataclass, bad input as one line."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

from utils.files import InputError

Config = TypeVar("Config")


def run_command(config_class: type[Config], main: Callable[[Config], None]) -> None:
    """Parses the command line into `config_class` and calls `main` with it.

    Bad input (`InputError`) ends the process with exit status 2 and one line on standard error.
    """
    # Nothing here loads from a hub; without this a mistyped folder becomes a slow network error.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # accelerate's torchrun workers import matplotlib in parallel; no display is ever needed.
    os.environ.setdefault("MPLBACKEND", "Agg")
    from transformers import HfArgumentParser
    from transformers.utils import logging

    logging.set_verbosity_error()  # what loading reports is checked where it is loaded
    logging.disable_progress_bar()

    try:
        config = HfArgumentParser(config_class).parse_args_into_dataclasses()[0]
        main(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

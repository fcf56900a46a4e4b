"""One way in for every command: options from a dataclass, bad input as one line.

An option is a field of the dataclass; the text below the field is its help.
"""

import contextlib
import dataclasses
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import tyro

from utils.files import InputError
from utils.formatting import printable
from utils.run_record import FinishedAlready, refuse_taken

Options = type | Mapping[str, type]  # a dataclass, or one for each name of a subcommand


@dataclass(frozen=True)
class Command:
    """A command: its options, and the module whose `main` takes them.

    The module is imported once the options are read, so that `--help` and bad options need not wait
    for what it imports.
    """

    options: Options
    module: str
    positional: tuple[str, ...] = ()  # options that the first words fill


def parse(options: Options, words: Sequence[str], positional: Sequence[str] = ()) -> Any:
    """Turns command-line words into a configuration.

    Args:
        options: A dataclass; each field is an option. Or subcommands: the first word names the
            dataclass.
        words: The command line without the program's name.
        positional: Options that the first words fill if they are no flags.

    Returns:
        An instance of the dataclass. What it does not know goes into its field `passed_on`, if it
        has one.

    Raises:
        InputError: There is no such option, or a value cannot be read or is out of its range.
        SystemExit: Help was asked for.
    """
    if isinstance(options, Mapping):
        return parse(*_choose(options, words), positional)
    named, rest = [], list(words)
    for name in positional:
        if rest and not rest[0].startswith("-"):
            named += [f"--{name}", rest.pop(0)]
    printed = _Printed()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            config, unknown = tyro.cli(
                options,
                prog=_program(),
                args=[*named, *rest],
                return_unknown_args=True,
                config=(tyro.conf.HelptextFromCommentsOff,),
            )
    except SystemExit as end:
        if end.code in (0, None):  # help was asked for
            print(printed.getvalue(), end="")
            raise
        raise InputError(_message(printed.getvalue())) from None
    if unknown and not hasattr(config, "passed_on"):
        raise InputError(f"unknown option {unknown[0]}; --help lists what there is")
    return dataclasses.replace(config, passed_on=tuple(unknown)) if unknown else config


def _program() -> str:
    """Returns the command as one would type it: `python -m test guard stream`."""
    words = takewhile(lambda word: not word.startswith("-"), sys.argv[1:])
    return " ".join(["python -m", Path(sys.argv[0]).parent.name, *words])


def _choose(named: Mapping[str, Any], words: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """Returns what the first word names, and the other words."""
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print("The first word is one of these; each has its own --help.")
        for known, one in named.items():
            about = one.__doc__ if isinstance(one, type) else ""
            print(f"  {known:12} {(about or '').partition(chr(10))[0]}".rstrip())
        sys.exit()
    if name not in named:
        raise InputError(f"'{name}': the first word must be one of {', '.join(named)}")
    return named[name], words[1:]


class _Printed(io.StringIO):
    """What tyro prints, framed alike whatever the terminal: no colours, the same signs."""

    encoding = "utf-8"


def _message(box: str) -> str:
    """Returns what tyro says in a framed box as one line."""
    text = " ".join(line.strip("│ ") for line in box.splitlines() if line[:1] == "│")
    told = re.split(r"─{3}|Argument helptext:|For full helptext", text)[0]
    if told.startswith("Missing from"):  # helps of the options are between their names
        missing = re.findall(r"^│ {5}(--[\w-]+)", box.partition("│ ───")[0], re.MULTILINE)
        told = f"missing {', '.join(missing)}"
    return f"{told.strip().rstrip('.')}; --help lists the options"


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def run_command(commands: Mapping[str, Command]) -> None:
    """Runs the command that the first word of the command line names, with the options after it.

    A command that is given again ends at once where its output folder holds just that run. Bad
    input (`InputError`) ends the process with exit status 2 and one line on standard error, and so
    does what the system refuses (a full disk, a folder that may not be written). On SIGTERM
    temporary files are removed and worker processes ended, as on SIGINT.
    """
    signal.signal(signal.SIGTERM, _end)
    # worker processes tokenise side by side; a pool of threads in each would only hinder
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # what loading reports is checked where it is loaded
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        command, words = _choose(commands, sys.argv[1:])
        config = parse(command.options, words, command.positional)
        if hasattr(config, "inputs"):
            refuse_taken(config)
        importlib.import_module(command.module).main(config)
    except FinishedAlready as finished:
        print(finished)
    except InputError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        print(f"error: {printable(str(error.filename or 'system'))}: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

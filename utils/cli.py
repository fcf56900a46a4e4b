"""One way in for every command: options from a dataclass, bad input as one line.

An option is a field of the dataclass; the text below the field is its help.
"""

import dataclasses
import importlib
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

# tyro's only structured errors; a private module, hence the pinned version
from tyro._errors import (
    InstantiationFailure,
    InvalidChoice,
    MissingArgs,
    ParseErrorEvent,
    on_parse_error,
)

from utils.files import InputError
from utils.formatting import printable
from utils.run_record import FinishedAlready, refuse_taken

Options = type | Mapping[str, type]  # a dataclass, or one for each name of a subcommand


@dataclass(frozen=True)
class Command:
    """A command: its options, and the module whose `main` takes them.

    The module is imported after the options are read: `--help` and mistakes answer at once.
    """

    options: Options
    module: str
    positional: tuple[str, ...] = ()  # options that the first words fill


def parse(
    options: Options, words: Sequence[str], positional: Sequence[str] = (), program: str = "python"
) -> Any:
    """Turns command-line words into a configuration.

    Args:
        options: A dataclass; each field is an option. Or subcommands: the first word names the
            dataclass.
        words: The command line without the program's name.
        positional: Options that the first words fill if they are no flags.
        program: The program's name in `--help`.

    Returns:
        An instance of the dataclass. Options that it lacks go into its field `passed_on`, if it
        has one.

    Raises:
        InputError: An option is unknown or missing, or a value cannot be read or is out of range.
        SystemExit: Help was asked for.
    """
    if isinstance(options, Mapping):
        chosen = _choose(options, words, program)
        return parse(chosen, words[1:], positional, f"{program} {words[0]}")
    named, rest = [], list(words)
    for name in positional:
        if rest and not rest[0].startswith("-"):
            named += [f"--{name}", rest.pop(0)]
    with on_parse_error(_refuse):
        config, unknown = tyro.cli(
            options,
            prog=program,
            args=[*named, *rest],
            return_unknown_args=True,
            config=(tyro.conf.HelptextFromCommentsOff,),
        )
    if unknown and not hasattr(config, "passed_on"):
        raise InputError(f"unknown option {unknown[0]}; --help lists the options")
    return dataclasses.replace(config, passed_on=tuple(unknown)) if unknown else config


def _choose(named: Mapping[str, Any], words: Sequence[str], program: str) -> Any:
    """Returns what the first word names."""
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(f"usage: {program} COMMAND [-h] [OPTIONS]\n\nCommands; each has its own --help:")
        for known, one in named.items():
            about = one.__doc__ if isinstance(one, type) else ""
            print(f"  {known:12} {(about or '').partition(chr(10))[0]}".rstrip())
        sys.exit()
    if name not in named:
        raise InputError(f"'{name}': the first word must be one of {', '.join(named)}")
    return named[name]


def _refuse(event: ParseErrorEvent) -> None:
    """Raises what tyro would print in a box as an `InputError` of one line."""
    if isinstance(event, MissingArgs):
        flags = (missing.arg.lowered.name_or_flags[0] for missing in event.missing_arguments)
        raise InputError(f"missing {', '.join(flags)}; --help lists the options")
    flag, metavar = event.argument.lowered.name_or_flags[0], event.argument.lowered.metavar
    if isinstance(event, InvalidChoice):
        raise InputError(f"{flag}: {event.value!r} is not one of {', '.join(event.choices)}")
    if isinstance(event, InstantiationFailure):
        value = re.search(r"(?:from|:) (['\"[].*['\"\]])", event.message).group(1)
        raise InputError(f"{flag}: expected {metavar}, found {value}")
    raise InputError(f"{flag}: expected {metavar}, found no value")


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def run_command(commands: Mapping[str, Command]) -> None:
    """Runs the command that the first word of the command line names, with the options after it.

    A command whose output folder holds its finished run ends at once. Bad input (`InputError`) and
    errors of the system (a full disk, a read-only folder) end the process with exit status 2 and
    one line on standard error. SIGTERM removes temporary files and ends worker processes, as SIGINT
    does.
    """
    signal.signal(signal.SIGTERM, _end)
    # worker processes tokenise side by side; threads in each would slow them down
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # the code that loads a model checks what loading reports
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        words = sys.argv[1:]
        program = f"python -m {Path(sys.argv[0]).parent.name}"
        command = _choose(commands, words, program)
        program = f"{program} {words[0]}"
        config = parse(command.options, words[1:], command.positional, program)
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

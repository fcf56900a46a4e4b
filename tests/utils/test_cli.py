"""Command lines: what they are read into, and the one line that a mistake gets."""

import importlib
import subprocess
import sys
from dataclasses import dataclass, field, fields
from typing import Literal

import pytest

from tests.conftest import ROOT
from train.options import QwenConfig
from train.training import training_arguments
from utils import cli
from utils.cli import Command, parse, run_command
from utils.files import InputError

PACKAGES = sorted(path.parent.name for path in ROOT.glob("[a-z]*/__main__.py"))
TRAINING = ["--output-dir", "o", "--data-dir", "d", "--base-model-path", "b"]


@dataclass
class Config:
    """Options of a command that does nothing."""

    output_dir: str
    """Folder to write."""
    method: Literal["one", "two"] = "one"
    """How."""
    rate: float = 0.5
    """Share; not above 1, see --method two."""
    targets: list[float] = field(default_factory=lambda: [0.1])
    """Several at once."""
    k: int | None = None
    """Tokens."""
    resume: bool = False
    """Go on."""

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise InputError(f"--rate: {self.rate} is above 1")


def main(config: Config) -> None:
    """The command."""
    if config.output_dir == "full":
        raise OSError(28, "No space left on device", "full")
    print(f"ran with {config.rate}")


@pytest.fixture()
def command_line(monkeypatch, capsys):
    """Runs a command line; returns its exit status, its output and its errors."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def go(*words: str, package: str = "program", **commands: Command) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"/repository/{package}/__main__.py", *words])
        try:
            run_command(commands or {"go": Command(Config, __name__, ("output_dir",))})
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return go


def test_first_words_fill_positional_options_and_the_last_flag_wins():
    """Scripts give their recipe first and the user's flags after it."""
    words = ["folder", "--rate", "0.1", "--resume", "--targets", "1", "2", "--rate=0.2"]
    config = parse(Config, [*words, "--rate", "0.3", "--no-resume"], ("output_dir", "method"))
    assert config == Config("folder", rate=0.3, targets=[1, 2])
    assert parse(Config, ["--output_dir", "a", "--output-dir", "b"]).output_dir == "b"
    assert parse(QwenConfig, [*TRAINING, "--epochs", "3", "--epochs", "1"]).epochs == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["out", "--rat", "1"], "unknown option --rat"),
        (["out", "more"], "unknown option more"),
        (["out", "--rate", "much"], "^--rate: expected FLOAT, found 'much'$"),
        (["out", "--k", "abc"], r"^--k: expected {None}.INT, found \['abc'\]$"),
        (["out", "--targets", "1", "b"], r"^--targets: expected .*FLOAT.*, found \['1', 'b'\]$"),
        (["out", "--rate"], "^--rate: expected FLOAT, found no value$"),
        (["out", "--method", "three"], "^--method: 'three' is not one of one, two$"),
        (["out", "--rate", "2"], "--rate: 2.0 is above 1"),
        ([], "missing --output-dir;"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, message, command_line):
    status, output, errors = command_line("go", *words)
    assert status == 2 and output == "" and errors.startswith("error: ")
    assert errors.count("\n") == 1
    with pytest.raises(InputError, match=message):
        parse(Config, words, ("output_dir",))


def test_all_missing_options_are_named_without_their_help():
    with pytest.raises(InputError, match="^missing --data-dir, --base-model-path; --help"):
        parse(QwenConfig, ["--output-dir", "o", "--optim", "x"])


def test_commands_are_named(command_line):
    assert command_line("go", "out", "--rate", "0.7") == (0, "ran with 0.7\n", "")
    status, _, errors = command_line("stop")
    assert status == 2 and errors == "error: 'stop': the first word must be one of go\n"
    status, output, _ = command_line("--help")
    assert status == 0 and "  go" in output and "usage: python -m program COMMAND" in output
    guards = Command({"one": Config}, __name__)
    assert command_line("guard", "one", "--output-dir", "o", guard=guards)[0] == 0
    status, _, errors = command_line("guard", "two", guard=guards)
    assert status == 2 and "one of one" in errors
    status, output, _ = command_line("guard", "--help", guard=guards)
    assert status == 0 and "Options of a command that does nothing." in output


def test_what_the_system_refuses_is_one_line(command_line):
    assert command_line("go", "full") == (2, "", "error: full: No space left on device\n")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_command_has_help(package, command_line):
    """It names each option."""
    commands = importlib.import_module(f"{package}.__main__").COMMANDS
    for name, command in commands.items():
        kinds = command.options if isinstance(command.options, dict) else {"": command.options}
        for kind, options in kinds.items():
            status, output, errors = command_line(
                name, *[kind][: bool(kind)], "--help", package=package, **commands
            )
            assert status == 0 and not errors
            assert output.startswith(f"usage: python -m {package} {name} {kind}".rstrip())
            for option in {one.name for one in fields(options)} - {"passed_on"}:
                assert f"--{option.replace('_', '-')}" in output, (package, name, option)


def test_options_need_no_heavy_package():
    """`--help` and mistakes answer at once."""
    code = "; ".join(f"import {package}.__main__" for package in PACKAGES)
    code += "; import sys; print(sys.modules.keys() & {'torch', 'transformers', 'datasets'})"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_help_names_the_command_as_one_types_it():
    words = ["-m", "test", "guard", "stream"]
    done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True)
    assert done.stdout.startswith(b"usage: python -m test guard stream [-h]")


def test_options_of_training_arguments_are_passed_on():
    config = parse(QwenConfig, [*TRAINING, "--optim", "adafactor", "--adam-beta1", "0.8"])
    arguments = training_arguments(config)
    assert arguments.optim == "adafactor" and arguments.adam_beta1 == 0.8
    for words, message in (
        (["--optm", "adafactor"], "unknown option --optm"),
        (["--adam-beta1", "much"], "adam.beta1: invalid float value: 'much'"),
        (["--per_device_train_batch_size", "4"], "--per_device_train_batch_size: an option of"),
        (["--data-seed", "4"], "--data_seed: an option of ours sets it"),
    ):
        with pytest.raises(InputError, match=message):
            training_arguments(parse(QwenConfig, [*TRAINING, *words]))


def test_a_message_steers_no_terminal(command_line):
    message = "error: 'né\\x1b[31m\\n': the first word must be one of known\n"
    assert command_line("né\x1b[31m\n", known=Command(Config, "nowhere")) == (2, "", message)

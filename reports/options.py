"""Options of the reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.files import InputError, sha256_file


def tests_read(runs_dir: Path) -> dict[str, Any]:
    """Returns hashes of what reports read: the tests in a folder and below it."""
    from evaluation.predictions import FILE  # datasets: seconds
    from evaluation.runs import find_tests

    files = [folder / FILE for folder in find_tests(runs_dir)]
    return {"tests": {str(path.parent): sha256_file(path) for path in files}}


@dataclass
class TablesConfig:
    """Options of the tables."""

    runs_dir: str
    """Folder that holds the tests' output folders."""
    output_dir: str = ""
    """Folder for the tables; default RUNS_DIR/tables."""
    paper_backbone: Literal["0.5b", "1.5b", "7b"] = "0.5b"
    """Which of the paper's backbones stands beside ours."""
    overwrite: bool = False
    """Replace the output folder."""

    def __post_init__(self) -> None:
        self.output_dir = self.output_dir or str(Path(self.runs_dir) / "tables")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return tests_read(Path(self.runs_dir))


@dataclass
class FigureConfig:
    """Options of the figures."""

    runs_dir: str
    """Folder in which test folders are looked for."""
    output_dir: str = ""
    """Folder for the figures; default RUNS_DIR/figures."""
    overwrite: bool = False
    """Replace the output folder."""

    def __post_init__(self) -> None:
        self.output_dir = self.output_dir or str(Path(self.runs_dir) / "figures")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return tests_read(Path(self.runs_dir))


@dataclass
class ExamplesConfig:
    """Options of the page of examples."""

    test_dir: str
    """Folder that a test of partial detection wrote."""
    output: str | None = None
    """File to write; default examples.html in that folder."""
    count: int = 48
    """Responses to show."""
    theta: float | None = None
    """Threshold of a token; default chosen on validation."""
    k: int | None = None
    """Tokens that it takes; default chosen on validation."""
    seed: int = 42
    """Of the choice of responses."""
    overwrite: bool = False
    """Replace the file."""

    def __post_init__(self) -> None:
        if (self.theta is None) != (self.k is None):
            raise InputError("--theta and --k: give both or neither")
        if self.theta is not None and not 0 < self.theta <= 1:
            raise InputError(f"--theta: {self.theta} is not above 0 and at most 1")
        for name in ("count", "k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name}: {value} is below 1")
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is below 0")

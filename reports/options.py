"""Options of the reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from utils.files import InputError, sha256_file
from utils.options import refuse_below_one


@dataclass
class RunsConfig:
    """Options that tables and figures share."""

    runs_dir: str
    """Folder in which test folders are looked for."""
    output_dir: str = ""
    """Folder to write; default RUNS_DIR/tables for tables, RUNS_DIR/figures for figures."""
    overwrite: bool = False
    """Replace the output folder."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        self.output_dir = self.output_dir or str(Path(self.runs_dir) / self.kind)

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of the tests that are read, of detectors and of aligned policies.

        Raises:
            InputError: There is none.
        """
        from align.measures import SUMMARY, VALUES
        from evaluation.predictions import METRICS, PREDICTIONS  # datasets: seconds
        from evaluation.runs import find_tests

        tests = find_tests(Path(self.runs_dir))
        policies = find_tests(Path(self.runs_dir), SUMMARY)
        if not (tests or policies):
            raise InputError(
                f"{self.runs_dir}: no test folder in it (none holds {METRICS}, of a detector, or"
                f" {SUMMARY}, of an aligned policy)"
            )
        files = [one / name for one in policies for name in (SUMMARY, VALUES)]
        return {
            "tests": {str(one): sha256_file(one / PREDICTIONS) for one in tests},
            "policies": {str(one): sha256_file(one) for one in files},
        }


@dataclass
class TablesConfig(RunsConfig):
    """Options of the tables."""

    paper_backbone: Literal["0.5b", "1.5b", "7b"] = "0.5b"
    """Which of the paper's backbones stands beside ours."""

    kind: ClassVar[str] = "tables"


@dataclass
class FigureConfig(RunsConfig):
    """Options of the figures."""

    kind: ClassVar[str] = "figures"


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
        refuse_below_one(self, "count")
        if (self.theta is None) != (self.k is None):
            raise InputError("--theta and --k: give both or neither")
        if self.theta is not None:
            refuse_below_one(self, "k")
            if not 0 < self.theta <= 1:
                raise InputError(f"--theta: {self.theta} is not above 0 and at most 1")
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is below 0")

"""A test's output folder, read back: the one reader for tables, figures, pages and calibration."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict

from data.options import Reading
from evaluation.predictions import METRICS, PREDICTIONS, Predictions, load_predictions
from evaluation.protocol import OperatingPoint, choose_operating_points
from utils.files import InputError, read_json
from utils.formatting import printable
from utils.run_record import RECORD
from utils.validation import one_line

Name = Annotated[str, AfterValidator(printable)]  # nothing in it steers a terminal or ends a line


class Read(BaseModel):
    """The fields that are read of a JSON object; others are left alone."""

    model_config = ConfigDict(strict=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a JSON file; raises InputError where a field is missing or of another type."""
        with one_line(str(path)):
            return cls.model_validate(read_json(path))


class Commit(Read):
    commit: Name | None = None
    dirty: bool | None = None


class Model(Commit):
    """What a record says of the tested model; another's has no seed."""

    seed: int | None = None
    base_model_path: Name | None = None
    backbone: dict[str, str] | None = None
    data_sha256: str | None = None
    seconds: float | None = None


class Data(Read):
    folder: Name
    meta_sha256: str
    join: str = ""
    reading: Reading = "plain"
    max_length: int = 0


class Options(Read):
    bootstrap: int
    seed: int
    target_false_alarm: float = 0.0
    target_k: int = 4
    stride: int = 1


class Settings(Read):
    """The thresholds that a test was given."""

    theta: float
    k: int | None  # None: of full detection


class Record(Read):
    """run.json."""

    config: Options
    data: Data
    git: Commit | None
    device: Name
    seconds: float
    model: Model | None = None
    settings: Settings | None = None


class Result(Read):
    """What is read back of metrics.json; all else is computed from the predictions."""

    row: Name
    method: Name


@dataclass
class Run:
    """One test of one model, as its output folder tells."""

    folder: Path
    row: str  # its key, as in the README
    method: str  # its own name, or what `--name` calls it
    record: Record
    test: Predictions
    valid: Predictions | None = None  # a test with given thresholds may lack it

    @property
    def display_name(self) -> str:
        """The method, and which prefixes were scored if not all were."""
        stride = self.record.config.stride
        return self.method if stride == 1 else f"{self.method}, every {ordinal(stride)} prefix"

    @property
    def seed(self) -> int | None:
        """The training's seed; None where no training of ours is known."""
        return self.record.model and self.record.model.seed

    @property
    def target(self) -> tuple[float, int] | None:
        """The share of false alarms that θ is calibrated for, and its k."""
        config = self.record.config
        return (config.target_false_alarm, config.target_k) if config.target_false_alarm else None

    def operating_points(self) -> dict[str, OperatingPoint]:
        """Chooses the thresholds of each kind of detection, as the test did."""
        given = self.record.settings and (self.record.settings.theta, self.record.settings.k)
        target, k = self.target or (0.0, 0)
        return choose_operating_points(self.valid, self.test, target, k, given)


def ordinal(number: int) -> str:
    """Formats 1, 2, … as 1st, 2nd, …"""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def read_run(folder: Path, partial: bool = False, valid: bool = False) -> Run:
    """Reads a test's output folder; `partial` requires token scores, `valid` a validation split.

    Raises:
        InputError: A file or field is missing or of another type, a split is empty or missing, or a
            test of full detection has no scores of tokens where they are needed.
    """
    result, record = Result.read(folder / METRICS), Record.read(folder / RECORD)
    splits = load_predictions(folder / PREDICTIONS)
    if "valid" not in splits and (valid or record.settings is None):
        raise InputError(f"{folder / PREDICTIONS}: split 'valid' is missing")
    for name, split in splits.items():
        if not len(split):
            raise InputError(f"{folder / PREDICTIONS}: split '{name}' holds no response")
        if split.token_probs is None and (partial or result.row.endswith("-partial")):
            raise InputError(
                f"{folder / PREDICTIONS}: array '{name}_token_probs' is missing: full detection"
                " alone stops no stream; name the folder of a partial-detection test"
            )
    return Run(folder, result.row, result.method, record, **splits)


def split_key(test: Predictions) -> tuple:
    """Equal for test splits of the same responses, labels and groups: they can be compared."""
    return tuple(test.ids), tuple(test.label.tolist()), tuple(test.group.tolist())


def find_tests(folder: Path, holding: str = METRICS) -> list[Path]:
    """Returns the output folders of tests in a folder and all below it, sorted.

    A test folder holds metrics.json, or the file that another kind of test writes. Those in hidden
    folders, some half-written, are left out.
    """
    found = (path.relative_to(folder) for path in folder.rglob(holding))
    return sorted(folder / path.parent for path in found if "/." not in f"/{path}")

"""A test's output folder, read back: the one reader for tables, figures, pages and calibration."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from evaluation.predictions import METRICS, PREDICTIONS, Predictions, load_predictions
from evaluation.protocol import OperatingPoint, choose_operating_points
from utils.files import InputError, read_json
from utils.formatting import printable
from utils.run_record import RECORD

Name = Annotated[str, AfterValidator(printable)]  # nothing in it steers a terminal or ends a line
Content = TypeVar("Content", bound="Read")


class Read(BaseModel):
    """The fields that are read of a JSON object; others are left alone."""

    model_config = ConfigDict(strict=True)


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
    k: int


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
    """metrics.json: a record of the run for people to read.

    Whatever is shown later is computed from the predictions; only these fields are read back.
    """

    row: Name
    method: Name


@dataclass
class Run:
    """One test of one model.

    Attributes:
        folder: The test's output folder.
        row: Key of the row, as in the README.
        method: The method's own name, or what `--name` calls it.
        record: What run.json tells.
        test: Scores of the test split.
        valid: Scores of the validation split; None where thresholds were given and it lacks.
    """

    folder: Path
    row: str
    method: str
    record: Record
    test: Predictions
    valid: Predictions | None = None

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


def _read(path: Path, content: type[Content]) -> Content:
    try:
        return content.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        place = f"field '{field}': " if field else ""
        raise InputError(f"{path}: {place}{first['msg']}; is it a test's folder?") from None


def read_run(folder: Path, partial: bool = False, valid: bool = False) -> Run:
    """Reads a test's output folder.

    Args:
        folder: The folder.
        partial: Require scores of each token.
        valid: Require a validation split, whatever thresholds were given.

    Raises:
        InputError: A file or field is missing or of another type, a split is empty or missing, or a
            test of full detection has no scores of tokens where they are needed.
    """
    result, record = _read(folder / METRICS, Result), _read(folder / RECORD, Record)
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
    """Equal for test splits of the same responses, labelled and grouped the same.

    Only detectors tested on such splits can be compared, in one table or one figure.
    """
    return tuple(test.ids), tuple(test.label.tolist()), tuple(test.group.tolist())


def find_tests(folder: Path) -> list[Path]:
    """Returns the output folders of tests in a folder and all below it, sorted.

    A test folder holds metrics.json. Hidden folders, some half-written, are not looked into.
    """
    found = []
    for path, below, files in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(path)] if METRICS in files else []
    return sorted(found)

"""The output folders of aligned policies' tests (scripts/run-align.sh test), read back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, field_validator

from align.measures import JUDGED, MEASURES, SUMMARY, VALUES, measure_of, read_values
from align.options import AlignConfig
from evaluation.runs import Commit, Model, Name, Read, find_tests
from utils.files import InputError
from utils.formatting import printable
from utils.run_record import FREE, RECORD, hashes_in

PLAIN = {"": "as it is", "sft": "SFT", "dpo": "DPO", "tokendpo": "TokenDPO"}  # in tables' order
# Of the options that runs of a row may differ in, these paths tell what a policy learned from.
LEARNED_FROM = ("data_dir", "annotator_model")


class Training(Read):
    """Options of a policy's training; what is not named here is kept, too."""

    model_config = ConfigDict(strict=True, extra="allow")

    method: Literal["sft", "dpo", "tokendpo"]
    seed: int
    beta: float
    alpha: float
    weights: Name
    soft: bool
    data_dir: Name
    annotator_model: Name


class Summary(Read):
    """What is read back of alignment.json; all else is computed from the values."""

    method: Name
    training: Training | None

    @field_validator("training", mode="before")
    @classmethod
    def untrained(cls, value: Any) -> Any:
        """Reads {} as None."""
        return None if value == {} else value


class Options(Read):
    """Of the test."""

    bootstrap: int
    seed: int
    max_new_tokens: int
    longest_prompt: int
    temperature: float
    strictness: str = "strict"
    precision: str = "fp32"


class Record(Read):
    """run.json."""

    config: Options
    git: Commit | None
    model: Model
    judges: dict[str, dict[str, Any] | str]  # what it read, or the name of a model behind a chat
    reference: dict[str, str]


@dataclass
class PolicyRun:
    """One test of one policy, as its output folder tells."""

    folder: Path
    method: str  # its own name, or what `--name` calls it
    training: Training | None  # None of a policy as it is
    record: Record
    values: dict[str, np.ndarray]  # float [units] of each measure
    ids: dict[str, list[str]]  # of each kind of unit

    @property
    def seed(self) -> int | None:
        """The training's seed."""
        return self.training and self.training.seed

    @property
    def beta(self) -> float | None:
        """DPO's β; None where the training has none."""
        by_pairs = self.training and self.training.method != "sft"
        return self.training.beta if by_pairs else None

    @property
    def line(self) -> str:
        """The name without β: what rows of several βs share."""
        return self.method.removesuffix(f", β {self.beta:g}") if self.beta else self.method


def find_policies(folder: Path) -> list[Path]:
    """Returns the output folders of policies' tests, as `find_tests` does of detectors'."""
    return find_tests(folder, SUMMARY)


def read_policy(folder: Path) -> PolicyRun:
    """Reads the folder of a policy's test.

    Raises:
        InputError: A file or field is missing or broken; names it.
    """
    summary, record = Summary.read(folder / SUMMARY), Record.read(folder / RECORD)
    where = str(folder / VALUES)
    try:
        values, ids = read_values(folder)
    except (EOFError, ValueError) as error:  # of an empty file, of an array of letters
        raise InputError(f"{where}: cannot be read: {error}") from None
    for name, some in values.items():
        kind, _, judge = name.partition(": ")
        if not (kind in JUDGED and judge or name in MEASURES):
            raise InputError(f"{where}: array {name!r} is no known measure")
        unit = measure_of(name).unit
        if not some.size or some.shape != (len(ids.get(unit, ())),):
            expected = f"one value for each of 'ids {unit}'"
            raise InputError(f"{where}: array {name!r} is not {expected}")
    if not values:
        raise InputError(f"{where}: holds no measure")
    values = {printable(name): some for name, some in values.items()}
    return PolicyRun(folder, summary.method, summary.training, record, values, ids)


def rank(run: PolicyRun) -> tuple:
    """Sorts runs into the table's order: each method, then its variants; other βs at the end."""
    method, beta = run.training.method if run.training else "", run.beta
    other = beta is not None and beta != AlignConfig.beta
    variant = run.line != PLAIN[method]
    place = list(PLAIN).index(method)
    return other, place, variant, run.line, beta or 0, run.method, run.seed or 0, str(run.folder)


def refuse_mixture(runs: list[PolicyRun]) -> None:
    """Raises InputError unless runs of one name differ by the training's seed alone."""

    def origin(run: PolicyRun) -> dict[str, Any]:
        if run.training is None:
            return {}
        options = run.training.model_dump(exclude=FREE | {"seed"})
        for name in LEARNED_FROM:
            options[name] = Path(getattr(run.training, name)).resolve()
        return {**options, "backbone": {**(run.record.model.backbone or {}), "folder": None}}

    seeds: dict[int | None, PolicyRun] = {}
    for run in runs:
        one, first = origin(run), origin(runs[0])
        differing = sorted(name for name in one | first if one.get(name) != first.get(name))
        if differing:
            other, fault = runs[0], f"but their trainings' {differing[0]!r} differs"
        elif run.seed in seeds:
            other = seeds[run.seed]
            fault = "and neither was trained" if run.seed is None else "and of the same seed"
        else:
            seeds[run.seed] = run
            continue
        raise InputError(
            f"{other.folder} and {run.folder}: both are called '{run.method}' {fault};"
            " give one of them another --name"
        )


def refuse_unequal(runs: list[PolicyRun]) -> None:
    """Raises InputError unless all were asked and judged the same."""

    def asked(run: PolicyRun) -> dict[str, Any]:
        options = run.record.config.model_dump(exclude={"bootstrap", "seed"})
        judges = {name: hashes_in(one) for name, one in run.record.judges.items()}
        return {
            **{f"ids of '{unit}'": some for unit, some in run.ids.items()},
            "measures": sorted(run.values),
            **{f"option '{name}'": value for name, value in options.items()},
            "judges": judges,
            "references": hashes_in(run.record.reference),
        }

    first = asked(runs[0])
    for run in runs[1:]:
        found = asked(run)
        for name in first | found:
            if first.get(name) != found.get(name):
                raise InputError(
                    f"{runs[0].folder} and {run.folder}: the {name} differ, and rows are compared"
                    " on the same units alone; test both alike, or keep them in different folders"
                )

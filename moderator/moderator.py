"""The moderator: prototypes, combiner and threshold, as one thing that is kept in a folder.

moderator = Moderator.load(Path("runs/mlpm"))
moderator.check(reader.about())
verdicts = moderator.judge(reader.read([reader.encode(prompt)]))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.numpy import save

from evaluation.conformal import conformal_theta
from evaluation.decisions import FULL_THETAS, reaches, select_full
from moderator.combiner import Combiner, fit_combiner
from moderator.options import Combine, Prototype
from moderator.prompts import BENIGN
from moderator.prototypes import PART, ClassSums, Prototypes, make_prototypes
from monitor.verdicts import PromptVerdict
from utils.files import InputError, read_json, write_bytes, write_json
from utils.validation import one_line

ABOUT, WEIGHTS = "moderator.json", "moderator.safetensors"


class About(BaseModel):
    """moderator.json.

    Attributes:
        source: What the states depend on, from a `Reader`; another's are refused.
        classes: Names; the first one is the benign class.
        counts: Prompts of each that the prototypes are made of.
        prototype: See `Prototypes`.
        combine: See `Combiner`.
        c: Of the regression.
        intercept: Of the regression.
        target_false_alarm: What the threshold was calibrated for; 0: macro F1.
        threshold: Least score of a prompt that is flagged; None where nothing is ever flagged.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    source: dict[str, str | int]
    classes: list[str] = Field(min_length=2)
    counts: list[int]
    prototype: Prototype
    combine: Combine
    c: float
    intercept: float
    target_false_alarm: float
    threshold: float | None


@dataclass
class Rows:
    """States of prompts, kept to fit anew.

    Attributes:
        states: float32 (N, layers, hidden), or N arrays (layers, hidden).
        classes: int [N]; of validation prompts whose class is none of the moderator's, -1.
        label: int [N], 1 = harmful.
        valid: bool [N]; these choose the threshold, the others make the prototypes.
    """

    states: np.ndarray | Sequence[np.ndarray]
    classes: np.ndarray
    label: np.ndarray
    valid: np.ndarray

    def of(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Returns the states of the chosen rows, bool [N]; [n] arrays (layers, hidden)."""
        return [self.states[row] for row in np.flatnonzero(chosen)]

    def gather(self, chosen: np.ndarray, sums: ClassSums) -> None:
        """Adds the chosen rows, bool [N], to sums of classes."""
        states, classes = self.of(chosen), self.classes[chosen]
        for start in range(0, len(states), PART):
            sums.add(np.stack(states[start : start + PART]), classes[start : start + PART])


@dataclass
class Moderator:
    """Judges prompts by their states."""

    about: About
    prototypes: Prototypes
    combiner: Combiner
    rows: Rows | None = None

    @classmethod
    def fit(cls, about: About, rows: Rows, sums: ClassSums | None = None) -> Self:
        """Makes prototypes of the training rows, weighs the layers, chooses the threshold.

        Args:
            about: What to make; counts, intercept and threshold are filled in.
            rows: Training and validation rows.
            sums: Of the training rows, if they were gathered before; nearly all that a fit takes.

        Raises:
            InputError: A class has no prompt, validation lacks a class, or the states are unfit.
        """
        if sums is None:
            sums = ClassSums(len(about.classes), *rows.states[0].shape)
            rows.gather(~rows.valid, sums)
        if not sums.counts.all():
            raise InputError(f"class '{about.classes[int(np.argmin(sums.counts))]}': no prompt")
        prototypes = make_prototypes(sums, about.prototype)
        said, valid = (
            prototypes.probabilities(rows.of(chosen)) for chosen in (~rows.valid, rows.valid)
        )
        label = rows.label[rows.valid]
        if len(np.unique(label)) < 2:
            raise InputError("split 'valid': harmful and benign prompts are both needed")
        truth = rows.label[~rows.valid]
        combiner = fit_combiner(about.combine, said, truth, about.c, (valid, label))
        score = combiner.score(valid)
        if about.target_false_alarm:
            # in float32, as scores are compared and kept
            threshold = conformal_theta(
                score[label == 0].astype(np.float32), about.target_false_alarm
            )
        else:
            threshold = select_full(score.astype(np.float32), label, FULL_THETAS)
        about = about.model_copy(
            update={
                "counts": sums.counts.tolist(),
                "intercept": combiner.intercept,
                "threshold": threshold if np.isfinite(threshold) else None,
            }
        )
        return cls(about, prototypes, combiner, rows)

    def scores(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """Returns how harmful prompts are, float32 [n]; of states (layers, hidden) each."""
        return self.combiner.score(self.prototypes.probabilities(states)).astype(np.float32)

    def flags(self, scores: np.ndarray) -> np.ndarray:
        """Tells which scores, float32 [n], flag a prompt; bool [n]."""
        threshold = np.inf if self.about.threshold is None else self.about.threshold
        return reaches(scores, threshold)

    def judge(self, states: np.ndarray | Sequence[np.ndarray]) -> list[PromptVerdict]:
        """Judges prompts.

        Args:
            states: float32 (n, layers, hidden), or n arrays (layers, hidden), from the reader that
                `about.source` tells of.

        Raises:
            RuntimeError: A verdict is not a number: nothing is to pass then.
        """
        said, layers = self.prototypes.probabilities(states), self.combiner.layers
        if not np.isfinite(said).all():
            raise RuntimeError("the moderator's verdict on a prompt is not a number")
        spoken = said[:, np.array(layers, dtype=int) - 1] if layers else said
        score = self.combiner.score(said).astype(np.float32)
        return [
            PromptVerdict(
                bool(flagged), float(one), dict(zip(self.about.classes, some, strict=True)), layers
            )
            for flagged, one, some in zip(
                self.flags(score), score, spoken.mean(axis=1).tolist(), strict=True
            )
        ]

    def check(self, source: dict[str, Any], folder: str) -> None:
        """Refuses states of another source than those that it was made of.

        Raises:
            InputError: Names the first thing that differs.
        """
        for name in self.about.source | source:
            if self.about.source.get(name) != source.get(name):
                raise InputError(
                    f"{folder}: field 'source.{name}': the moderator was made for another"
                    f" ({self.about.source.get(name)!r:.20}, not {source.get(name)!r:.20})"
                )

    def with_class(
        self, name: str, states: Sequence[np.ndarray], sums: ClassSums | None = None
    ) -> Self:
        """Returns a moderator that knows one more class of harmful prompts.

        Args:
            name: Of the class.
            states: float32 (k, layers, hidden) of its examples, or k arrays (layers, hidden).
            sums: Of all training rows, the examples too, as for `fit`.

        Raises:
            InputError: The class is there, or the old prompts' states were not kept.
        """
        rows = self._kept()
        if name in self.about.classes:
            raise InputError(f"--name: the class '{name}' is there already")
        count, number = len(states), len(self.about.classes)
        grown = Rows(
            [*rows.states, *states],
            np.append(rows.classes, np.full(count, number)),
            np.append(rows.label, np.ones(count, dtype=int)),
            np.append(rows.valid, np.zeros(count, dtype=bool)),
        )
        about = self.about.model_copy(update={"classes": [*self.about.classes, name]})
        return type(self).fit(about, grown, sums)

    def without_class(self, name: str) -> Self:
        """Returns a moderator that has never seen a class's training prompts.

        Raises:
            InputError: There is no such class, it is the benign one or the last harmful one, or the
                prompts' states were not kept.
        """
        rows = self._kept()
        if name not in self.about.classes or name == BENIGN:
            known = ", ".join(self.about.classes[1:])
            raise InputError(f"--name: '{name}' is not one of the harmful classes: {known}")
        if len(self.about.classes) == 2:
            raise InputError(f"--name: '{name}' is the only harmful class")
        number = self.about.classes.index(name)
        stays = rows.valid | (rows.classes != number)
        moved = rows.classes - (rows.classes > number)
        kept = Rows(rows.of(stays), moved[stays], rows.label[stays], rows.valid[stays])
        classes = [one for one in self.about.classes if one != name]
        return type(self).fit(self.about.model_copy(update={"classes": classes}), kept)

    def _kept(self) -> Rows:
        if self.rows is None:
            raise InputError(
                "--moderator-path: the prompts' states were not kept; train it with --keep-states"
            )
        return self.rows

    def save(self, folder: Path, keep_states: bool) -> None:
        """Writes the moderator into a folder; `keep_states` for `with_class`, …"""
        tensors = {
            "weights": self.prototypes.weights,
            "bias": self.prototypes.bias,
            "coefficients": self.combiner.coefficients,
        }
        if keep_states:
            tensors |= {
                "rows.states": np.stack(self.rows.states).astype(np.float32),
                "rows.classes": self.rows.classes.astype(np.int64),
                "rows.label": self.rows.label.astype(np.int64),
                "rows.valid": self.rows.valid.astype(np.uint8),
            }
        tensors = {name: np.ascontiguousarray(one) for name, one in tensors.items()}
        write_bytes(folder / WEIGHTS, save(tensors))
        write_json(folder / ABOUT, self.about.model_dump())

    @classmethod
    def load(cls, folder: Path, with_states: bool = False) -> Self:
        """Reads a moderator.

        Args:
            folder: Its folder.
            with_states: Read the prompts' states, too, if they were kept, for `with_class`, …

        Raises:
            InputError: The folder holds none, or a spoilt one.
        """
        path = Path(folder) / ABOUT
        with one_line(str(path)):
            about = About.model_validate(read_json(path))
        path = path.with_name(WEIGHTS)
        try:
            with safe_open(path, framework="np") as file:
                names = [n for n in file.keys() if with_states or not n.startswith("rows.")]  # noqa: SIM118
                found = {name: file.get_tensor(name) for name in names}
        except Exception as error:  # safetensors raises its own bare SafetensorError
            raise InputError(f"{path}: cannot be read: {error}") from None
        layers, hidden = about.source.get("layers"), about.source.get("hidden")
        classes = len(about.classes)
        shapes = {
            "weights": (layers, classes, hidden),
            "bias": (layers, classes),
            "coefficients": (layers, classes - 1),
        }
        for name, shape in shapes.items():
            if name not in found or found[name].shape != shape:
                raise InputError(f"{path}: tensor '{name}': {shape} was expected")
            if not np.isfinite(found[name]).all():
                raise InputError(f"{path}: tensor '{name}': holds what is not a number")
        rows = None
        if "rows.states" in found:
            parts = {
                one: found.get(f"rows.{one}") for one in ("states", "classes", "label", "valid")
            }
            if any(part is None or len(part) != len(parts["states"]) for part in parts.values()):
                raise InputError(f"{path}: tensors 'rows.…' are not of one length")
            rows = Rows(**parts | {"valid": parts["valid"].astype(bool)})
        return cls(
            about,
            Prototypes(about.prototype, found["weights"], found["bias"]),
            Combiner(about.combine, found["coefficients"], about.intercept),
            rows,
        )

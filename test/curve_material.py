"""Prompts, read once, and moderators that are fitted on parts of them and measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np

from evaluation.bootstrap import intervals
from evaluation.decisions import Outcome
from evaluation.metrics import metrics
from evaluation.predictions import Predictions
from moderator.moderator import About, Moderator, Rows
from moderator.prompts import Prompt
from moderator.prototypes import ClassSums
from moderator.train import make_reader, make_rows, states_of
from test.curve_tables import SHOWN
from test.prompt_options import PromptCurvesConfig
from test.prompts import predictions_of

SPLITS = ("train", "valid", "test")
Point = dict[str, Any]  # of a curve: a line of curves.json


@dataclass
class Material:
    """Prompts, read once, and what is measured on them.

    Attributes:
        config: The options.
        source: What the states depend on.
        prompts: Of each split.
        states: float32 (layers, hidden) of each prompt, by its id.
        predictions: Of valid and test, without scores.
    """

    config: PromptCurvesConfig
    source: dict[str, Any]
    prompts: dict[str, list[Prompt]]
    states: dict[str, np.ndarray]
    predictions: dict[str, Predictions]

    @classmethod
    def read(cls, config: PromptCurvesConfig, prompts: dict[str, list[Prompt]]) -> Self:
        """Reads the prompts of all splits, or finds their states in the cache.

        Raises:
            InputError: The model is unfit.
        """
        reader = make_reader(config)
        every = [one for name in SPLITS for one in prompts[name]]
        states = states_of(reader, [one.prompt for one in every], config)
        by_id = {one.id: some for one, some in zip(every, states, strict=True)}
        empty = {
            name: predictions_of(prompts[name], np.zeros(len(prompts[name]), dtype=np.float32))
            for name in ("valid", "test")
        }
        return cls(config, reader.about(), prompts, by_id, empty)

    def of(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Returns the states of prompts, [n] arrays (layers, hidden)."""
        return [self.states[one.id] for one in prompts]

    def rows(self, prompts: Sequence[Prompt], names: list[str], by_category: bool) -> Rows:
        """Returns rows of prompts of train and valid."""
        return make_rows(prompts, self.of(prompts), names, by_category)

    def sums(self, classes: int) -> ClassSums:
        """Returns empty sums."""
        return ClassSums(classes, self.source["layers"], self.source["hidden"])

    def add(
        self, sums: ClassSums, prompts: Sequence[Prompt], names: list[str], by_category: bool
    ) -> None:
        """Adds prompts to sums of these classes."""
        self.rows(prompts, names, by_category).gather(np.full(len(prompts), True), sums)

    def fit(
        self,
        train: Sequence[Prompt],
        valid: Sequence[Prompt],
        names: list[str],
        sums: ClassSums,
        by_category: bool,
    ) -> Moderator:
        """Fits a moderator of classes on training prompts, whose sums are known."""
        about = About(
            source=self.source, classes=names, counts=[], prototype="gda", combine="l1",
            c=self.config.c, intercept=0.0, target_false_alarm=0.0, threshold=None,
        )  # fmt: skip
        rows = self.rows([*train, *valid], names, by_category)
        return Moderator.fit(about, rows, sums)

    def outcome(self, split: str, scores: np.ndarray, threshold: float) -> Outcome:
        """Returns what a threshold does to a split by its scores, float32 [N]."""
        return replace(self.predictions[split], response_prob=scores).full(threshold)

    def judge(self, moderator: Moderator) -> Outcome:
        """Returns what a moderator does to the test split."""
        scores = moderator.scores(self.of(self.prompts["test"]))
        return self.outcome("test", scores, moderator.about.threshold)

    def measure(self, outcome: Outcome) -> Point:
        """Returns what is shown of an outcome, with 95 % intervals over prompts."""
        config, found = self.config, partial(metrics, outcome)
        measured = intervals(found, outcome.group, config.bootstrap, config.seed)
        return {name: measured[name] for name in SHOWN.values()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean of draws as "value", the least and the greatest as "low" and "high"."""
    return {"value": float(np.mean(values)), "low": min(values), "high": max(values)}


def over_draws(draws: Sequence[Point]) -> Point:
    """Returns the spread of each number over draws."""
    return {name: spread([one[name] for one in draws]) for name in draws[0]}

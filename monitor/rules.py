"""Stopping rules: from the scores of a stream's tokens to its stop.

A rule turns each score into a statistic; the stream is stopped at the first token where the
statistic reaches the threshold. So one trace of a finished response holds the decisions of every
threshold. Rules and their states are immutable; a stream needs to keep its state alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, FiniteFloat, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from utils.validation import STRICT

Level = Literal["safe", "controversial", "unsafe"]
State = tuple[float, ...] | float

CLIP = 1e-6  # scores are kept this far from 0 and 1 before their log-odds are taken

Tokens = Annotated[int, Field(ge=1, le=2**20)]  # no model reads more; later ones would never stop


class Rule(ABC):
    """A stopping rule. A further one is a subclass here and a place in `RULES`, nothing else.

    Its fields are its shape: keys of monitor.json and options of scripts/calibrate-monitor.sh, with
    the text below each as the option's help.
    """

    name: ClassVar[str]
    highest: ClassVar[float] = 1.0  # value of the statistic
    # the fields that test/compare_rules.py tries; of equally good ones it takes the first
    shapes: ClassVar[tuple[tuple[float, ...], ...]] = tuple(
        (length,) for length in (2, 3, 4, 6, 8, 12, 20, 30, 50)
    )

    def start(self) -> State:
        """Returns the state before the first token."""
        return ()

    @abstractmethod
    def step(self, state: State, score: float) -> tuple[State, float]:
        """Returns the state and the statistic after one more token."""


@dataclass(frozen=True, config=STRICT)
class DelayK(Rule):
    """Delay-k detection (Harm@k): stops once k tokens have reached the threshold; k = 1 is naive.

    The state holds the k largest scores, ascending; the statistic is the least of them.

    Source: arXiv 2506.09996, section on evaluation.
    """

    name: ClassVar[str] = "delay-k"
    k: Tokens
    """Tokens that must reach the threshold, from 1."""

    def step(self, state: State, score: float) -> tuple[State, float]:
        largest = tuple(sorted((*state, score))[-self.k :])  # sorting a sorted run is linear
        return largest, largest[0] if len(largest) == self.k else -math.inf


@dataclass(frozen=True, config=STRICT)
class ConsecutiveK(Rule):
    """Stops once k consecutive tokens have reached the threshold.

    The state holds the last k scores; the statistic is the least of them.

    Source: the debounce of Qwen3Guard-Stream, there with k = 2.
    """

    name: ClassVar[str] = "consecutive-k"
    k: Tokens
    """Tokens that must reach the threshold, from 1."""

    def step(self, state: State, score: float) -> tuple[State, float]:
        last = (*state, score)[-self.k :]
        return last, min(last) if len(last) == self.k else -math.inf


@dataclass(frozen=True, config=STRICT)
class WindowedMean(Rule):
    """Stops once the mean over a window of the last tokens has reached the threshold.

    The state holds their scores. Until the window is full, the tokens it lacks count as 0.
    """

    name: ClassVar[str] = "windowed-mean"
    window: Tokens
    """Tokens in the window, from 1."""

    def step(self, state: State, score: float) -> tuple[State, float]:
        last = (*state, score)[-self.window :]
        return last, math.fsum(last) / self.window  # a running sum would gather rounding errors


@dataclass(frozen=True, config=STRICT)
class Cusum(Rule):
    """Sequential test for a change from benign to harmful: the cumulative sum of log-odds.

    State and statistic are S = max(0, S + log(p / (1 - p)) - drift), from S = 0. The threshold is
    in log-odds, too.

    Source: Page, Continuous Inspection Schemes, Biometrika 1954.
    """

    name: ClassVar[str] = "cusum"
    highest: ClassVar[float] = math.inf
    shapes = tuple((drift,) for drift in (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0))
    drift: FiniteFloat
    """Log-odds taken off at each token."""

    def start(self) -> State:
        return 0.0

    def step(self, state: State, score: float) -> tuple[State, float]:
        score = min(max(score, CLIP), 1 - CLIP)
        total = max(0.0, state + math.log(score / (1 - score)) - self.drift)
        return total, total


RULES = {rule.name: rule for rule in (DelayK, ConsecutiveK, WindowedMean, Cusum)}


def fail_closed(score: float) -> float:
    """Returns the score, or 1, certain harm, where it is NaN or infinite."""
    return score if math.isfinite(score) else 1.0


def trace(rule: Rule, scores: Iterable[float]) -> np.ndarray:
    """Returns the statistic after each token of a finished response, float64 [T].

    A live stream computes the same. NaN and infinite scores count as certain harm.
    """
    state, statistics = rule.start(), []
    for score in np.asarray(scores, dtype=float).tolist():
        state, statistic = rule.step(state, fail_closed(score))
        statistics.append(statistic)
    return np.array(statistics, dtype=float)


def highest_statistics(rule: Rule, responses: Iterable[Iterable[float]]) -> np.ndarray:
    """Returns the highest statistic of each finished response, float64 [N]; -inf of an empty one.

    A response is stopped iff it reaches the threshold.
    """
    return np.array([trace(rule, scores).max(initial=-math.inf) for scores in responses])


@dataclass(frozen=True, config=STRICT | {"arbitrary_types_allowed": True})
class Policy:
    """What becomes of a stream: three levels from two thresholds, and which of them stop it.

    Attributes:
        rule: Computes the statistic.
        unsafe: The least statistic of an unsafe stream.
        controversial: That of a controversial one; None for two levels.
        mode: strict also stops at controversial, loose at unsafe alone.
    """

    rule: Rule
    unsafe: Annotated[FiniteFloat, Field(gt=0)]
    controversial: Annotated[FiniteFloat, Field(gt=0)] | None = None
    mode: Literal["strict", "loose"] = "loose"

    @field_validator("unsafe", "controversial")
    @classmethod
    def _reachable(cls, value: float | None, info: ValidationInfo) -> float | None:
        rule, unsafe = info.data.get("rule"), info.data.get("unsafe")
        if value is not None and rule and value > rule.highest:
            raise ValueError(f"{rule.name} reaches {rule.highest:g} at most")
        if value is not None and unsafe is not None and value > unsafe:
            raise ValueError(f"it is above 'unsafe', {unsafe}")
        return value

    def level(self, statistic: float) -> Level:
        """Returns the level of a stream with this statistic."""
        if not statistic < self.unsafe:  # so that NaN is unsafe
            return "unsafe"
        if self.controversial is not None and statistic >= self.controversial:
            return "controversial"
        return "safe"

    def stops(self, level: Level) -> bool:
        """Tells whether a stream of this level is stopped."""
        return level == "unsafe" or (level == "controversial" and self.mode == "strict")

    @property
    def stop_threshold(self) -> float:
        """The least statistic that stops a stream."""
        if self.mode == "strict" and self.controversial is not None:
            return self.controversial
        return self.unsafe

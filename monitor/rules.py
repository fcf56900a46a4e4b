"""Stopping rules: from the scores of a stream's tokens to its stop.

A rule turns each score into a statistic; the stream is stopped at the first token where the
statistic reaches the threshold. So one trace of a finished response holds the decisions of every
threshold. Rules and their states are immutable: whoever keeps the state keeps the stream.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from evaluation.decisions import MISSED
from utils.files import InputError

Level = Literal["safe", "controversial", "unsafe"]
Mode = Literal["strict", "loose"]
MODES: tuple[Mode, ...] = ("strict", "loose")
State = tuple[float, ...] | float

CERTAIN = 1.0  # the score of a token whose own is no number
CLIP = 1e-6  # scores are kept this far from 0 and 1 before their log-odds are taken


def is_number(value: object) -> bool:
    """Tells whether a value is a finite number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # NaN is not; a whole number may be larger than that


def _refuse_below_one(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"field '{field}': {value!r} is not a whole number from 1")


@dataclass(frozen=True)
class DelayK:
    """Delay-k detection (Harm@k): stops where k tokens so far have reached the threshold.

    Its state holds the k largest scores, ascending; its statistic is the least of them. With
    k = 1 it is naive detection.

    Attributes:
        k: Tokens that it takes, from 1.

    Source: arXiv 2506.09996, section on evaluation.
    """

    name: ClassVar[str] = "delay-k"
    highest: ClassVar[float] = 1.0  # value of the statistic
    k: int

    def __post_init__(self) -> None:
        _refuse_below_one("k", self.k)

    def start(self) -> State:
        """Returns the state before the first token."""
        return ()

    def step(self, state: State, score: float) -> tuple[State, float]:
        """Returns the state and the statistic after one more token; O(k)."""
        largest = tuple(sorted((*state, score))[-self.k :])  # sorting a sorted run is linear
        return largest, largest[0] if len(largest) == self.k else -math.inf


@dataclass(frozen=True)
class ConsecutiveK:
    """Stops where the last k tokens have all reached the threshold.

    Its state holds the last k scores; its statistic is the least of them.

    Attributes:
        k: Tokens that it takes, from 1.

    Source: the debounce of Qwen3Guard-Stream, there with k = 2.
    """

    name: ClassVar[str] = "consecutive-k"
    highest: ClassVar[float] = 1.0
    k: int

    def __post_init__(self) -> None:
        _refuse_below_one("k", self.k)

    def start(self) -> State:
        """Returns the state before the first token."""
        return ()

    def step(self, state: State, score: float) -> tuple[State, float]:
        """Returns the state and the statistic after one more token; O(k)."""
        last = (*state, score)[-self.k :]
        return last, min(last) if len(last) == self.k else -math.inf


@dataclass(frozen=True)
class WindowedMean:
    """Stops where the mean of the last scores has reached the threshold.

    Its state holds the last scores; its statistic is their sum over the window's length, so that
    tokens which have not come yet count as 0.

    Attributes:
        window: Tokens in the window, from 1.
    """

    name: ClassVar[str] = "windowed-mean"
    highest: ClassVar[float] = 1.0
    window: int

    def __post_init__(self) -> None:
        _refuse_below_one("window", self.window)

    def start(self) -> State:
        """Returns the state before the first token."""
        return ()

    def step(self, state: State, score: float) -> tuple[State, float]:
        """Returns the state and the statistic after one more token; O(window)."""
        last = (*state, score)[-self.window :]
        return last, math.fsum(last) / self.window  # a running sum would gather rounding errors


@dataclass(frozen=True)
class Cusum:
    """Sequential test for a change from benign to harmful: the cumulative sum of log-odds.

    State and statistic are S = max(0, S + log(p / (1 - p)) - drift), from S = 0. A token whose
    log-odds are below the drift lowers it, others raise it. The threshold is in log-odds, too.

    Attributes:
        drift: Log-odds taken off at each token.

    Source: Page, Continuous Inspection Schemes, Biometrika 1954.
    """

    name: ClassVar[str] = "cusum"
    highest: ClassVar[float] = math.inf
    drift: float

    def __post_init__(self) -> None:
        if not is_number(self.drift):
            raise InputError(f"field 'drift': {self.drift!r} is not a finite number")

    def start(self) -> State:
        """Returns the state before the first token."""
        return 0.0

    def step(self, state: State, score: float) -> tuple[State, float]:
        """Returns the state and the statistic after one more token; O(1)."""
        score = min(max(score, CLIP), 1 - CLIP)
        total = max(0.0, state + math.log(score / (1 - score)) - self.drift)
        return total, total


Rule = DelayK | ConsecutiveK | WindowedMean | Cusum
RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (DelayK, ConsecutiveK, WindowedMean, Cusum)
}


def fail_closed(score: float) -> float:
    """Returns the score, or that of certain harm where it is NaN or infinite."""
    return score if math.isfinite(score) else CERTAIN


def trace(rule: Rule, scores: Iterable[float]) -> np.ndarray:
    """Computes the statistic after each token of a finished response, as a live stream would.

    Args:
        rule: The rule.
        scores: float [T], one score a response token; NaN and infinity count as certain harm.

    Returns:
        float64 [T].
    """
    state, statistics = rule.start(), []
    for score in np.asarray(scores, dtype=float).tolist():
        state, statistic = rule.step(state, fail_closed(score))
        statistics.append(statistic)
    return np.array(statistics, dtype=float)


def stop(rule: Rule, threshold: float, scores: Iterable[float]) -> int:
    """Finds where a rule stops a finished response.

    Args:
        rule: The rule.
        threshold: Least statistic that stops.
        scores: float [T].

    Returns:
        The index of the token at which the stream is stopped, or `evaluation.decisions.MISSED`.
    """
    reached = np.flatnonzero(trace(rule, scores) >= threshold)
    return int(reached[0]) if len(reached) else MISSED


@dataclass(frozen=True)
class Policy:
    """What becomes of a stream: three levels from two thresholds, and which of them stop it.

    Attributes:
        rule: The rule.
        unsafe: From which statistic on a stream is unsafe.
        controversial: From which on it is at least controversial; None for two levels.
        mode: strict also stops at controversial, loose at unsafe alone.
    """

    rule: Rule
    unsafe: float
    controversial: float | None = None
    mode: Mode = "loose"

    def __post_init__(self) -> None:
        for field in ("unsafe", "controversial"):
            value, highest = getattr(self, field), self.rule.highest
            if value is None and field == "controversial":
                continue
            if not is_number(value) or not 0 < value <= highest:
                limit = "finite" if math.isinf(highest) else f"at most {highest:g}"
                raise InputError(
                    f"field '{field}': {value!r} is no threshold of {self.rule.name}: a number"
                    f" above 0 and {limit}"
                )
        if self.controversial is not None and self.controversial > self.unsafe:
            raise InputError(
                f"field 'controversial': {self.controversial} is above 'unsafe', {self.unsafe}"
            )
        if self.mode not in MODES:
            raise InputError(f"field 'mode': {self.mode!r} is none of {', '.join(MODES)}")

    def level(self, statistic: float) -> Level:
        """Returns the level of a stream whose statistic is this."""
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

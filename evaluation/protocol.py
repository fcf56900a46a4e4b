"""From scores to a report: the one protocol every method is measured by.

(θ, k) chosen on validation is the result; the paper's own protocol, which picks them on the test
split, stands beside it and is named as optimistic.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from evaluation.bootstrap import intervals
from evaluation.conformal import calibrate
from evaluation.decisions import FULL_THETAS, MAX_K, THETAS, Outcome, select_full, select_partial
from evaluation.metrics import by_length, metrics, point_metrics, stop_histogram
from evaluation.predictions import Predictions


@dataclass(frozen=True)
class OperatingPoint:
    """The thresholds of one kind of detection, and the split that chose them."""

    theta: float
    k: int | None  # of delay-k detection; None for full detection
    chosen_on: Literal["valid", "test", "settings"]  # settings: they were given

    def decide(self, split: Predictions) -> Outcome:
        """Judges a split."""
        return split.full(self.theta) if self.k is None else split.partial(self.theta, self.k)


def choose_operating_points(
    valid: Predictions | None,
    test: Predictions,
    target_false_alarm: float = 0.0,
    target_k: int = 4,
    given: tuple[float, int | None] | None = None,
) -> dict[str, OperatingPoint]:
    """Chooses the thresholds of every kind of detection that the scores allow; see `evaluate`."""
    if given is not None:
        kind = "full" if given[1] is None else "partial"
        return {kind: OperatingPoint(*given, "settings")}
    points = {}
    if not np.isnan(valid.response_prob).all():
        theta = select_full(valid.response_prob, valid.label, FULL_THETAS)
        points["full"] = OperatingPoint(theta, None, "valid")
    if test.token_probs is None:
        return points
    for key, name, split in (("partial", "valid", valid), ("partial_paper_protocol", "test", test)):
        theta, k = select_partial(split.token_probs, split.label, THETAS, MAX_K)
        points[key] = OperatingPoint(theta, k, name)
    if target_false_alarm:
        theta = calibrate(valid.token_probs, valid.label, target_k, target_false_alarm)
        points["partial_conformal"] = OperatingPoint(theta, target_k, "valid")
    return points


def evaluate(
    valid: Predictions | None,
    test: Predictions,
    resamples: int,
    seed: int,
    target_false_alarm: float = 0.0,
    target_k: int = 4,
    given: tuple[float, int | None] | None = None,
) -> dict[str, Any]:
    """Chooses thresholds on validation and measures the test split.

    Args:
        valid: Validation split; may lack where thresholds are given.
        test: Test split.
        resamples: Bootstrap samples of the 95 % intervals.
        seed: Of the bootstrap.
        target_false_alarm: Adds "partial_conformal": delay-k whose θ promises at most this share
            of false alarms (see `evaluation.conformal`); 0 for none.
        target_k: Its k.
        given: θ and k of partial detection, or θ and None of full detection, from elsewhere:
            nothing is chosen, and the test split may hold one class alone.

    Returns:
        The content of metrics.json; NaN where undefined.
    """
    counts = {
        name: {
            "all": len(split),
            "harmful": int(split.label.sum()),
            "prompts": len(np.unique(split.group)),
        }
        for name, split in (("valid", valid), ("test", test))
        if split is not None
    }
    result: dict[str, Any] = {"responses": counts}
    points = choose_operating_points(valid, test, target_false_alarm, target_k, given)
    for key, point in points.items():
        outcome, is_partial = point.decide(test), point.k is not None
        result[key] = {
            "theta": point.theta,
            **({"k": point.k} if is_partial else {}),
            "chosen_on": point.chosen_on,
            **({"valid": point_metrics(point.decide(valid))} if valid is not None else {}),
            "test": intervals(partial(metrics, outcome), outcome.group, resamples, seed),
            **({"stop_histogram": stop_histogram(outcome).tolist()} if is_partial else {}),
            "by_length": by_length(outcome, test.lengths),
        }
    if "partial_conformal" in result:
        result["partial_conformal"]["target_false_alarm"] = target_false_alarm
    return result

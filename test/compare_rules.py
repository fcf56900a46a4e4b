"""Compares stopping rules on the scores of one test; pure computation.

Rules can be compared where they raise equally many false alarms. `choose_shape` calibrates each
rule on benign validation responses, as for a monitor in use: the test split then shows a result,
but the realised shares of false alarms differ. `at_equal_false_alarms` sets the thresholds on the
test split itself: the shares are the same, but it is no result.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.bootstrap import MetricFunction, bootstrap, paired_test, with_interval
from evaluation.decisions import Outcome, stopped_outcome
from evaluation.metrics import by_length, length_part, metrics
from evaluation.predictions import Predictions
from monitor.calibrate import benign_threshold
from monitor.rules import RULES, DelayK, Rule, trace

FAMILIES: dict[str, tuple[Rule, ...]] = {  # the shapes of each kind of rule
    "naive": (DelayK(1),),
    **{name: tuple(rule(*shape) for shape in rule.shapes) for name, rule in RULES.items()},
}
REFERENCE = DelayK.name  # the paper's rule; the others are tested against it


def running_maxima(rule: Rule, token_probs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the highest statistic up to each token, [N] arrays [T]; these hold every stop."""
    return [np.maximum.accumulate(trace(rule, probs)) for probs in token_probs]


def _highest(maxima: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([one[-1] for one in maxima])


def outcome_at(
    maxima: Sequence[np.ndarray], split: Predictions, theta: float | np.ndarray
) -> Outcome:
    """Stops every response of a split where its `running_maxima` reach a threshold, or its own."""
    thetas = np.broadcast_to(theta, len(maxima))
    # T: never stopped
    released = np.array([np.searchsorted(one, at) for one, at in zip(maxima, thetas, strict=True)])
    return stopped_outcome(released, _highest(maxima), split.token_labels, split.label, split.group)


def statistics_of(outcome: Outcome, lengths: np.ndarray) -> MetricFunction:
    """Returns the metrics of an outcome, as a function of weights [B, N].

    To `evaluation.metrics.metrics` it adds released_share, the mean share of a harmful response
    that was out before the stop, and length_gap, the largest minus the smallest false-alarm rate
    over the quartiles of length.
    """
    harmful = outcome.label == 1
    part_of = length_part(lengths)

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = weights @ (harmful * outcome.released / lengths) / (weights @ harmful)
            rates = []
            for part in np.unique(part_of):
                benign = ~harmful & (part_of == part)
                rates.append(weights @ (benign & outcome.flagged) / (weights @ benign))
        gap = np.fmax.reduce(rates) - np.fmin.reduce(rates)  # over parts with benign responses
        return {**metrics(outcome, weights), "released_share": share, "length_gap": gap}

    return statistics


def at_equal_false_alarms(
    maxima: Sequence[np.ndarray], split: Predictions, target: float
) -> MetricFunction:
    """Returns the metrics of a rule that stops exactly the target share of benign responses.

    The threshold is set anew for each row of weights: the lowest that stops no more than the
    target. Where it stops fewer (the target is no whole number of responses, or benign responses
    tie), each stream draws between this threshold and the next lower one, with the probability that
    meets the target on average; the metrics are the averages over the draw. The lowest threshold of
    all stops everything at its first token.

    Returns:
        From weights [B, N] to float [B] each: false_alarm_rate (the target), miss_rate,
        mean_fraction_seen, released_share; NaN where undefined.
    """
    benign, harmful, lengths = split.label == 0, split.label == 1, split.lengths[:, None]
    steps = np.unique(_highest(maxima)[benign])[::-1]  # each threshold stops one step's ties more
    thetas = np.append(np.nextafter(steps, np.inf), -np.inf)  # (P,)
    released = np.array([np.searchsorted(one, thetas) for one in maxima])  # (N, P)
    stopped = (released < lengths).astype(float)
    seen = stopped * (released + 1) / lengths

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        weights = np.asarray(weights, float)  # (B, N)
        alarms = weights[:, benign] @ stopped[benign]  # (B, P), rising from none to all
        wanted = target * alarms[:, -1:]  # (B, 1)
        over = np.where(alarms > wanted, alarms, np.inf).min(axis=1, keepdims=True)
        upper, lower = ((alarms <= most).sum(axis=1, keepdims=True) - 1 for most in (wanted, over))

        def at(place: np.ndarray, curve: np.ndarray) -> np.ndarray:  # (B, 1), (B, P) -> (B, 1)
            return np.take_along_axis(curve, place, axis=1)

        def drawn(curve: np.ndarray) -> np.ndarray:  # (B, P) -> (B,)
            return ((1 - share) * at(upper, curve) + share * at(lower, curve))[:, 0]

        of_harmful = weights[:, harmful]
        count = of_harmful.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (wanted - at(upper, alarms)) / (at(lower, alarms) - at(upper, alarms))
            detected = drawn(of_harmful @ stopped[harmful])
            return {
                "false_alarm_rate": drawn(alarms) / alarms[:, -1],
                "miss_rate": 1 - detected / count,
                "mean_fraction_seen": drawn(of_harmful @ seen[harmful]) / detected,
                "released_share": drawn(of_harmful @ (released / lengths)[harmful]) / count,
            }

    return statistics


def point(statistics: MetricFunction, count: int) -> dict[str, float]:
    """Returns each statistic of `count` responses, each counted once."""
    return {name: float(value[0]) for name, value in statistics(np.ones((1, count))).items()}


def choose_shape(
    shapes: dict[Rule, Sequence[np.ndarray]], valid: Predictions, target: float, path: Path
) -> tuple[Rule, float, dict[str, float]]:
    """Chooses the shape that releases least of the harmful validation responses.

    Args:
        shapes: Rules of one kind, with their `running_maxima` of the validation split.
        valid: That split.
        target: Share of false alarms that the thresholds are calibrated for.
        path: The file of the predictions, which a message names.

    Returns:
        The shape, its threshold and its metrics on the validation split.
    """
    candidates = []
    for rule, maxima in shapes.items():
        theta = benign_threshold(_highest(maxima)[valid.label == 0], target, path)
        statistics = statistics_of(outcome_at(maxima, valid, theta), valid.lengths)
        candidates.append((rule, theta, point(statistics, len(valid))))
    return min(candidates, key=lambda one: one[2]["released_share"])


def measure_rules(
    rules: dict[str, MetricFunction],
    compared: Sequence[str],
    group: np.ndarray,
    resamples: int,
    seed: int,
    reference: str = REFERENCE,
) -> dict[str, dict[str, Any]]:
    """Measures rules, the reference among them, on the same bootstrap samples of the groups.

    Returns:
        For each rule "test", every metric with its 95 % interval, and "against", the difference of
        the compared metrics from the reference's; NaN where undefined.
    """
    values = {name: point(statistics, len(group)) for name, statistics in rules.items()}
    samples = {
        name: bootstrap(statistics, group, resamples, seed) for name, statistics in rules.items()
    }

    def against(name: str, metric: str) -> dict[str, float]:
        difference = values[name][metric] - values[reference][metric]
        return paired_test(difference, samples[name][metric] - samples[reference][metric])

    return {
        name: {
            "test": {one: with_interval(own[one], samples[name][one]) for one in own},
            "against": {one: against(name, one) for one in compared},
        }
        for name, own in values.items()
    }


def compare_rules(
    splits: dict[str, Predictions], targets: Sequence[float], resamples: int, seed: int, path: Path
) -> list[dict[str, Any]]:
    """Measures every rule on the splits valid and test, at every target share of false alarms.

    Returns:
        A line for each target and rule: its shape and threshold; its metrics on "valid"; "test" and
        "against" of `measure_rules`; its false alarms "by_length"; and "equal_false_alarms", the
        same "test" and "against" with thresholds set on the test split.
    """
    valid, test = splits["valid"], splits["test"]
    every = [rule for rules in FAMILIES.values() for rule in rules]
    maxima = {
        rule: {name: running_maxima(rule, split.token_probs) for name, split in splits.items()}
        for rule in tqdm(every, "shapes of rules", unit="shape")
    }
    lines = []
    for target in tqdm(targets, "targets", unit="target"):
        chosen, calibrated, equal = {}, {}, {}
        for family, rules in FAMILIES.items():
            shapes = {rule: maxima[rule]["valid"] for rule in rules}
            rule, theta, on_valid = choose_shape(shapes, valid, target, path)
            outcome = outcome_at(maxima[rule]["test"], test, theta)
            calibrated[family] = statistics_of(outcome, test.lengths)
            equal[family] = at_equal_false_alarms(maxima[rule]["test"], test, target)
            chosen[family] = {
                "target": target,
                "family": family,
                "shape": dataclasses.asdict(rule),
                "threshold": theta,
                "valid": on_valid,
                "by_length": [
                    {name: part[name] for name in ("from", "to", "false_alarm_rate")}
                    | {"benign": part["responses"] - part["harmful"]}
                    for part in by_length(outcome, test.lengths)
                ],
            }
        compared = ("released_share", "false_alarm_rate", "length_gap")
        found = measure_rules(calibrated, compared, test.group, resamples, seed)
        matched = measure_rules(equal, ("released_share",), test.group, resamples, seed)
        lines += [
            {**line, **found[family], "equal_false_alarms": matched[family]}
            for family, line in chosen.items()
        ]
    return lines

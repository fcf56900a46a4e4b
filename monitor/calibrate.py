"""Settings of a monitor from a test's scores: for a promised share of false alarms, or as chosen.

scripts/calibrate-monitor.sh writes the former; the test of SCM leaves the latter beside the model.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.conformal import CAVEAT, conformal_theta
from evaluation.decisions import FULL_THETAS, kth_largest
from evaluation.predictions import METRICS, PREDICTIONS, Predictions
from evaluation.runs import read_run
from model.options import ScoreWith
from monitor.options import CalibrateConfig
from monitor.rules import RULES, Policy, Rule, trace
from monitor.settings import MonitorSettings, token_theta_of, write_settings
from utils.files import InputError, refuse_file
from utils.formatting import percent

SCORERS: dict[str, ScoreWith] = {  # what scored the tokens of a row
    "scm": "token",
    "scm-holistic": "holistic",
    "qwen-partial": "holistic",
}
CONTROVERSIAL_MISSES = 0.05  # of harmful validation responses, at the lower threshold


def highest_statistics(rule: Rule, token_probs: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the highest statistic of each response, which decides whether it is stopped.

    Args:
        rule: The rule.
        token_probs: [N] float arrays [T].

    Returns:
        float64 [N].
    """
    return np.array([trace(rule, probs).max(initial=-np.inf) for probs in token_probs])


def benign_threshold(statistics: np.ndarray, target: float, path: Path) -> float:
    """Returns the conformal threshold for a share of false alarms.

    Args:
        statistics: float [n], the highest statistic of each benign validation response.
        target: The share, above 0 and below 1.
        path: Where the responses come from, for the message.

    Raises:
        InputError: They are too few to promise so little.
    """
    threshold = conformal_theta(statistics, target)
    if math.isinf(threshold):
        needed = math.ceil(round(1 / target - 1, 9))
        raise InputError(
            f"{path}: {len(statistics)} benign validation responses promise no false-alarm share of"
            f" {target:g}; it takes {needed}"
        )
    return threshold


def controversial_theta(valid: Predictions, unsafe: float, k: int) -> float | None:
    """Returns the θ from which on delay-k detection calls a response controversial.

    Args:
        valid: Validation split.
        unsafe: The higher θ.
        k: Of both.

    Returns:
        The highest θ, up to the higher one, that misses at most `CONTROVERSIAL_MISSES` of the
        harmful responses; None where there is none (too many are shorter than k tokens).
    """
    harmful = [
        probs for probs, label in zip(valid.token_probs, valid.label, strict=True) if label == 1
    ]
    scores = kth_largest(harmful, k)[:, k - 1]
    for theta in sorted({*FULL_THETAS, unsafe}, reverse=True):
        if theta <= unsafe and (scores < theta).mean() <= CONTROVERSIAL_MISSES:
            return theta
    return None


def tested_settings(
    result: dict[str, Any], valid: Predictions, data: dict[str, Any]
) -> MonitorSettings:
    """Returns the settings that the test of SCM chose on validation.

    Args:
        result: Its metrics.json.
        valid: Its validation split.
        data: What it read (`ProcessedData.summary`).
    """
    row = result["partial"]
    unsafe, k = row["theta"], row["k"]
    policy = Policy(RULES["delay-k"](k), unsafe, controversial_theta(valid, unsafe, k))
    origin = {
        "chosen_on": row["chosen_on"],
        "unsafe": "θ and k of the best macro F1",
        "controversial": f"highest θ at which this k misses at most"
        f" {percent(CONTROVERSIAL_MISSES, 0)} % of harmful responses",
        "responses": result["responses"][row["chosen_on"]],
        **{name: row["valid"][name] for name in ("macro_f1", "false_alarm_rate", "miss_rate")},
        "data": {name: data[name] for name in ("folder", "join", "max_length", "meta_sha256")},
    }
    return MonitorSettings(policy, SCORERS[result["row"]], token_theta_of(policy), origin)


def main(config: CalibrateConfig) -> None:
    """Writes the settings file.

    Raises:
        InputError: Nothing can be promised from these scores, or no monitor computes such scores.
    """
    folder, output, rule = Path(config.metrics_dir), Path(config.output_file), config.make_rule()
    refuse_file(output, config.overwrite)
    run = read_run(folder, partial=True, valid=True)
    if run.row not in SCORERS:
        raise InputError(
            f"{folder / METRICS}: field 'row': no monitor scores tokens as {run.row!r} does;"
            f" one of {', '.join(SCORERS)} was expected"
        )
    valid, target = run.valid, config.target_false_alarm
    statistics = highest_statistics(rule, valid.token_probs)
    benign, harmful = statistics[valid.label == 0], statistics[valid.label == 1]
    threshold = benign_threshold(benign, target, folder / PREDICTIONS)
    if threshold > rule.highest:
        raise InputError(
            f"{folder / PREDICTIONS}: more than {target:g} of the benign validation responses reach"
            f" {rule.highest:g}, the highest statistic of {rule.name}; no threshold separates them"
        )
    policy = Policy(rule, threshold)
    origin = {
        "chosen_on": "valid",
        "target_false_alarm": target,
        "promise": "conformal: a new benign response like those of validation is stopped with at"
        f" most this probability {CAVEAT}; nor may they have chosen the rule's shape",
        "benign_responses": len(benign),
        "metrics_dir": str(folder),
        "row": run.row,
    }
    score_with = SCORERS[run.row]
    write_settings(output, MonitorSettings(policy, score_with, token_theta_of(policy), origin))
    missed = percent((harmful < threshold).mean() if len(harmful) else None)
    print(
        f"threshold {threshold:.4g} for at most {100 * target:g} % false alarms, from"
        f" {len(benign)} benign validation responses; {missed} % of {len(harmful)} harmful ones"
        f" would be missed: {output}\nthat share is promised {CAVEAT}"
    )

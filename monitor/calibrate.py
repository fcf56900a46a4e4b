"""Settings of a monitor from a test's scores.

scripts/calibrate-monitor.sh calibrates a threshold for a share of false alarms; the test of SCM
leaves the threshold that it chose beside the model.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.conformal import CAVEAT, conformal_theta
from evaluation.decisions import FULL_THETAS, kth_largest
from evaluation.predictions import METRICS, PREDICTIONS, Predictions
from evaluation.runs import read_run
from model.options import ScoreWith
from monitor.options import CalibrateConfig
from monitor.rules import DelayK, Policy, highest_statistics
from monitor.settings import MonitorSettings, write_settings
from utils.files import InputError, refuse_file
from utils.formatting import percent

SCORERS: dict[str, ScoreWith] = {  # what scored the tokens of a row
    "scm": "token",
    "scm-holistic": "holistic",
    "qwen-partial": "holistic",
}
CONTROVERSIAL_MISSES = 0.05  # of harmful validation responses, at the lower threshold


def benign_threshold(statistics: np.ndarray, target: float, path: Path) -> float:
    """Returns the conformal threshold for a target share of false alarms.

    Args:
        statistics: float [n], the highest statistic of each benign validation response.
        target: Above 0 and below 1.
        path: The file of the responses.

    Raises:
        InputError: They are too few to promise so little; names the file.
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
    """Returns the θ at which delay-k detection calls a response controversial.

    It is the highest θ, `unsafe` at most, that misses no more than `CONTROVERSIAL_MISSES` of the
    harmful responses; None where there is none (too many are shorter than k tokens).
    """
    scores = kth_largest(valid.token_probs, k)[valid.label == 1, k - 1]
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
        data: What it read, from `data_summary`.
    """
    row = result["partial"]
    unsafe, k = row["theta"], row["k"]
    policy = Policy(DelayK(k), unsafe, controversial_theta(valid, unsafe, k))
    origin = {
        "chosen_on": row["chosen_on"],
        "unsafe": "θ and k of the best macro F1",
        "controversial": f"highest θ at which this k misses at most"
        f" {percent(CONTROVERSIAL_MISSES, 0)} % of harmful responses",
        "responses": result["responses"][row["chosen_on"]],
        **{name: row["valid"][name] for name in ("macro_f1", "false_alarm_rate", "miss_rate")},
        "data": {name: data[name] for name in ("folder", "join", "max_length", "meta_sha256")},
    }
    return MonitorSettings(policy, SCORERS[result["row"]], unsafe, origin, data["reading"])


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
    origin = {
        "chosen_on": "valid",
        "target_false_alarm": target,
        "promise": "conformal: a new benign response like those of validation is stopped with at"
        f" most this probability {CAVEAT}; nor may they have chosen the rule's shape",
        "benign_responses": len(benign),
        "metrics_dir": str(folder),
        "row": run.row,
    }
    # the thresholds of other rules are not of one token
    token_theta = threshold if isinstance(rule, DelayK) else 0.5
    policy = Policy(rule, threshold)
    reading = run.record.data.reading
    write_settings(output, MonitorSettings(policy, SCORERS[run.row], token_theta, origin, reading))
    missed = percent((harmful < threshold).mean() if len(harmful) else None)
    print(
        f"threshold {threshold:.4g} for at most {100 * target:g} % false alarms, from"
        f" {len(benign)} benign validation responses; {missed} % of {len(harmful)} harmful ones"
        f" would be missed: {output}\nthat share is promised {CAVEAT}"
    )

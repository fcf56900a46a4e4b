"""Compares stopping rules on a test's scores (scripts/compare-rules.sh).

Rules of different kinds are comparable where they raise as many false alarms: each one's threshold
is calibrated on the benign validation responses for the same share. Of the shapes of a rule, the
one that lets out least of the harmful validation responses is taken. The test split is measured.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from monitor.calibrate import benign_threshold, load_partial
from monitor.rules import ConsecutiveK, Cusum, DelayK, Rule, WindowedMean, trace
from utils.cli import run_command
from utils.files import (
    InputError,
    atomic_folder,
    read_json,
    refuse_below_one,
    refuse_overwrite,
    sha256_file,
    write_bytes,
    write_json,
)
from utils.metrics import (
    Outcome,
    Statistics,
    bootstrap,
    by_length,
    metrics,
    paired_test,
    with_interval,
)
from utils.predictions import FILE, Predictions
from utils.report import interval, percent, threshold
from utils.run_record import start_record, write_record
from utils.table_formats import markdown_table

POSITIONAL = ("metrics_dir",)  # the first word of the command line
MARK = "rules.json"  # each output folder of this command holds it

LENGTHS = (2, 3, 4, 6, 8, 12, 20, 30, 50)
FAMILIES: dict[str, tuple[Rule, ...]] = {  # and their shapes, among equals the first is taken
    "naive": (DelayK(1),),
    DelayK.name: tuple(map(DelayK, LENGTHS)),
    ConsecutiveK.name: tuple(map(ConsecutiveK, LENGTHS)),
    WindowedMean.name: tuple(map(WindowedMean, LENGTHS)),
    Cusum.name: tuple(map(Cusum, (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0))),
}
REFERENCE = DelayK.name  # the paper's rule; the others are tested against it
COMPARED = ("released_share", "false_alarm_rate", "length_gap")
METRICS = (
    "false_alarm_rate",
    "miss_rate",
    "macro_f1",
    "mean_fraction_seen",
    "released_share",
    "length_gap",
)
NOTES = """\
Percent, on the test split, with 95 % bootstrap intervals over prompts. Each threshold is calibrated
on the benign validation responses for the target share of false alarms (split-conformal); of a
rule's shapes the one is taken that releases least of the harmful validation responses. "Seen":
share of a detected harmful response that was out when it was stopped. "Released": share of a
harmful response that was out before the stop, all of it where it was missed, so that it tells of
misses and of earliness in one number. "Against delay-k": difference in percentage points on the
same resampled prompts, with its two-sided p."""
LENGTH_NOTES = """\
False alarms in each quartile of response length, and the largest of them minus the smallest. The
gap is above zero by chance alone, too, so it is compared with delay-k's rather than with none."""


@dataclass
class RulesConfig:
    """Options of the comparison."""

    metrics_dir: str = field(metadata={"help": "Folder that a test of partial detection wrote."})
    output_dir: str = field(metadata={"help": "Folder for the comparison."})
    targets: list[float] = field(
        default_factory=lambda: [0.05, 0.1, 0.2],
        metadata={"help": "Shares of false alarms that thresholds are calibrated for."},
    )
    bootstrap: int = field(default=2000, metadata={"help": "Samples of the 95 %% intervals."})
    seed: int = field(default=42, metadata={"help": "Of the bootstrap."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output folder."})

    def __post_init__(self) -> None:
        refuse_below_one(self, "bootstrap")
        for target in self.targets:
            if not 0 < target < 1:
                raise InputError(f"--targets: {target} is not above 0 and below 1")


def running_maxima(rule: Rule, token_probs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the highest statistic up to each token, [N] arrays [T]: every threshold's stops."""
    return [np.maximum.accumulate(trace(rule, probs)) for probs in token_probs]


def outcome_at(maxima: Sequence[np.ndarray], split: Predictions, theta: float) -> Outcome:
    """Stops every response where its statistic reaches a threshold.

    Args:
        maxima: [N] arrays [T] of `running_maxima`.
        split: The N responses.
        theta: The threshold.
    """
    lengths = split.lengths
    released = np.array([np.searchsorted(one, theta) for one in maxima])  # T: never stopped
    return Outcome(
        label=split.label,
        flagged=released < lengths,
        score=np.array([one[-1] for one in maxima]),
        seen=np.minimum(released + 1, lengths) / lengths,
        leaked=np.array(
            [(row[:end] == 1).sum() for row, end in zip(split.token_labels, released, strict=True)]
        ),
        released=released,
        group=split.group,
    )


def statistics_of(outcome: Outcome, lengths: np.ndarray) -> Statistics:
    """Returns what is measured of an outcome, as a function of weights [B, N].

    To `utils.metrics.metrics` it adds released_share, the mean share of a harmful response that was
    out before the stop, and length_gap, the largest minus the smallest false-alarm rate of the
    quartiles of length.
    """
    harmful = outcome.label == 1
    starts = [part["from"] for part in by_length(outcome, lengths)]
    part_of = np.searchsorted(starts, lengths, side="right")

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


@dataclass
class Traced:
    """A shape of a rule on both splits.

    Attributes:
        rule: The rule.
        valid: `running_maxima` of the validation responses.
        test: Those of the test responses.
    """

    rule: Rule
    valid: list[np.ndarray]
    test: list[np.ndarray]


def choose_shape(
    shapes: Sequence[Traced], valid: Predictions, target: float, path: Path
) -> tuple[Traced, float, dict[str, float]]:
    """Chooses the shape that releases least of the harmful validation responses.

    Args:
        shapes: Of one rule.
        valid: Validation split.
        target: Share of false alarms that each shape's threshold is calibrated for.
        path: Where the predictions come from, for messages.

    Returns:
        The shape, its threshold and what it does to the validation split.
    """
    candidates = []
    for shape in shapes:
        highest = np.array([one[-1] for one in shape.valid])
        theta = benign_threshold(highest[valid.label == 0], target, path)
        statistics = statistics_of(outcome_at(shape.valid, valid, theta), valid.lengths)
        values = statistics(np.ones((1, len(valid))))
        candidates.append((shape, theta, {name: float(values[name][0]) for name in METRICS}))
    return min(candidates, key=lambda one: one[2]["released_share"])


def compare(
    splits: dict[str, Predictions], targets: Sequence[float], resamples: int, seed: int, path: Path
) -> list[dict[str, Any]]:
    """Measures every rule at every target.

    Args:
        splits: Validation and test.
        targets: Shares of false alarms.
        resamples: Bootstrap samples of the 95 % intervals.
        seed: Of the bootstrap.
        path: Where the predictions come from, for messages.

    Returns:
        A line for each target and rule: its shape and threshold, its metrics on "valid" and on
        "test", there with intervals, its false alarms "by_length", and how it differs "against" the
        reference; NaN where undefined.
    """
    valid, test = splits["valid"], splits["test"]
    shapes = [(family, rule) for family, rules in FAMILIES.items() for rule in rules]
    traced: dict[str, list[Traced]] = {family: [] for family in FAMILIES}
    for family, rule in tqdm(shapes, "shapes of rules", unit="shape"):
        both = (running_maxima(rule, split.token_probs) for split in (valid, test))
        traced[family].append(Traced(rule, *both))
    lines = []
    for target in tqdm(targets, "targets", unit="target"):
        found, samples = {}, {}
        for family in FAMILIES:
            shape, theta, on_valid = choose_shape(traced[family], valid, target, path)
            outcome = outcome_at(shape.test, test, theta)
            statistics = statistics_of(outcome, test.lengths)
            values = statistics(np.ones((1, len(test))))
            samples[family] = bootstrap(statistics, test.group, resamples, seed)
            found[family] = {
                "target": target,
                "family": family,
                "shape": dataclasses.asdict(shape.rule),
                "threshold": theta,
                "valid": on_valid,
                "test": {
                    name: with_interval(float(value[0]), samples[family][name])
                    for name, value in values.items()
                },
                "by_length": [
                    {name: part[name] for name in ("from", "to", "false_alarm_rate")}
                    | {"benign": part["responses"] - part["harmful"]}
                    for part in by_length(outcome, test.lengths)
                ],
            }
        for family, line in found.items():
            line["against"] = {
                name: paired_test(
                    line["test"][name]["value"] - found[REFERENCE]["test"][name]["value"],
                    samples[family][name] - samples[REFERENCE][name],
                )
                for name in COMPARED
            }
        lines += found.values()
    return lines


def _shape(line: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in line["shape"].items())


def _difference(line: dict[str, Any], name: str) -> str:
    against = line["against"][name]
    if line["family"] == REFERENCE or against["p"] is None:
        return percent(None)
    return f"{interval(against)}, p {against['p']:.3f}"


def as_markdown(result: dict[str, Any]) -> str:
    """Formats rules.json: what each rule does, then how much it depends on length."""
    test, lines = result["responses"]["test"], result["rules"]
    rules = [
        {
            "target": f"{100 * line['target']:g}",
            "rule": line["family"],
            "shape": _shape(line),
            "threshold": threshold(line["threshold"]),
            **{
                head: interval(line["test"][name])
                for head, name in (
                    ("false alarms", "false_alarm_rate"),
                    ("missed", "miss_rate"),
                    ("macro F1", "macro_f1"),
                    ("seen", "mean_fraction_seen"),
                    ("released", "released_share"),
                )
            },
            f"released, against {REFERENCE}": _difference(line, "released_share"),
            f"false alarms, against {REFERENCE}": _difference(line, "false_alarm_rate"),
        }
        for line in lines
    ]
    lengths = [
        {
            "target": f"{100 * line['target']:g}",
            "rule": line["family"],
            **{
                f"{part['from']}–{part['to']} tokens ({part['benign']} benign)": percent(
                    part["false_alarm_rate"]
                )
                for part in line["by_length"]
            },
            "gap": interval(line["test"]["length_gap"]),
            f"gap, against {REFERENCE}": _difference(line, "length_gap"),
        }
        for line in lines
    ]
    blocks = [
        f"# Stopping rules on the scores of {result['method']}",
        f"{test['all']} test responses, {test['harmful']} harmful.",
        NOTES,
        markdown_table(rules),
        "## Dependence on length",
        LENGTH_NOTES,
        markdown_table(lengths),
    ]
    return "\n\n".join(blocks) + "\n"


def as_csv(result: dict[str, Any]) -> str:
    """Formats rules.json as one flat line for each target and rule."""
    lines = []
    for line in result["rules"]:
        columns = {"target": line["target"], "rule": line["family"], "shape": _shape(line)}
        columns["threshold"] = line["threshold"]
        columns |= {f"valid_{name}": value for name, value in line["valid"].items()}
        for name in METRICS:
            columns |= {f"{name}_{part}": value for part, value in line["test"][name].items()}
        for number, part in enumerate(line["by_length"], start=1):
            columns |= {f"length{number}_{name}": value for name, value in part.items()}
        for name, against in line["against"].items():
            columns |= {f"{name}_against_{REFERENCE}_{k}": v for k, v in against.items()}
        lines.append(columns)
    return pd.DataFrame(lines).to_csv(index=False)


def main(config: RulesConfig) -> None:
    """Compares the rules, writes the folder and prints the table.

    Raises:
        InputError: The folder is no partial-detection test's, or it cannot be calibrated on.
    """
    began, folder = time.monotonic(), Path(config.output_dir)
    refuse_overwrite(folder, config.overwrite, MARK)
    source = Path(config.metrics_dir)
    tested, splits = load_partial(source)
    for name, split in splits.items():
        if len(set(split.label.tolist())) < 2:
            raise InputError(f"{source / FILE}: split '{name}' lacks a class")
    data = {"folder": str(source), "predictions_sha256": sha256_file(source / FILE)}
    record = start_record(config, data)
    lines = compare(splits, config.targets, config.bootstrap, config.seed, source / FILE)
    responses = {
        name: {"all": len(split), "harmful": int(split.label.sum())}
        for name, split in splits.items()
    }
    result = {name: tested[name] for name in ("row", "method")}
    result |= {"responses": responses, "resamples": config.bootstrap, "rules": lines}
    with atomic_folder(folder, MARK, config.overwrite) as partial:
        write_json(partial / MARK, result)
        result = read_json(partial / MARK)  # NaN has become null
        table = as_markdown(result)
        write_bytes(partial / "rules.md", table.encode())
        write_bytes(partial / "rules.csv", as_csv(result).encode())
        write_record(partial, record, started=began)
    print(table)
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    run_command(RulesConfig, main, POSITIONAL)

"""Compares stopping rules on a test's scores (scripts/compare-rules.sh)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.predictions import PREDICTIONS
from evaluation.runs import read_run
from test.compare_rules import REFERENCE, compare_rules
from test.options import RulesConfig
from utils.files import InputError, read_json, write_bytes, write_json
from utils.formatting import interval, markdown_table, percent, threshold
from utils.run_record import run_folder

HEADS = {
    "false alarms": "false_alarm_rate",
    "missed": "miss_rate",
    "macro F1": "macro_f1",
    "seen": "mean_fraction_seen",
    "released": "released_share",
    "gap": "length_gap",
}

NOTES = """\
Percent, on the test split, with 95 % bootstrap intervals over prompts. Each threshold is calibrated
on the benign validation responses for the target share of false alarms (split-conformal); of a
rule's shapes the one is taken that releases least of the harmful validation responses. "Seen":
share of a detected harmful response that was out when it was stopped. "Released": share of a
harmful response that was out before the stop, all of it where it was missed; one number for misses
and earliness. "Against delay-k": difference in percentage points on the
same resampled prompts, with its two-sided p, which is not corrected for the number of rules and
targets."""
EQUAL_NOTES = """\
Thresholds set on test: a comparison of rules, not a result. In the table above the realised shares
of false alarms differ, and a rule that raises more of them stops earlier. Here each rule stops
exactly the target share of the benign test responses, in the shape chosen on validation. Where no
threshold stops exactly that share, each stream's is drawn between the two nearest ones, and the
values are averages over the draw. Each bootstrap sample sets the thresholds anew: the intervals and
p contain the uncertainty of the thresholds, but not that of the choice of shapes."""
LENGTH_NOTES = """\
Thresholds calibrated on validation. False alarms in each quartile of response length, and the
largest of them minus the smallest. The gap is above zero by chance alone, too, so it is compared
with delay-k's rather than with none."""


def _shape(line: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in line["shape"].items())


def _cells(
    line: dict[str, Any], measured: dict[str, Any], heads: Sequence[str], compared: Sequence[str]
) -> dict[str, str]:
    """Formats metrics, then the difference of some of them from the reference's."""

    def difference(head: str) -> str:
        against = measured["against"][HEADS[head]]
        if line["family"] == REFERENCE or against["p"] is None:
            return percent(None)
        return f"{interval(against)}, p {against['p']:.3f}"

    return {head: interval(measured["test"][HEADS[head]]) for head in heads} | {
        f"{head}, against {REFERENCE}": difference(head) for head in compared
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Formats rules.json: as calibrated, at equal false alarms, by length."""
    calibrated, equal, lengths = [], [], []
    for line in result["rules"]:
        rule = {"target": f"{100 * line['target']:g}", "rule": line["family"]}
        shape = {"shape": _shape(line)}
        theta = {"threshold": threshold(line["threshold"])}
        heads = ("false alarms", "missed", "macro F1", "seen", "released")
        cells = _cells(line, line, heads, ("released", "false alarms"))
        calibrated.append(rule | shape | theta | cells)
        heads = ("released", "seen", "missed")
        equal.append(rule | shape | _cells(line, line["equal_false_alarms"], heads, ("released",)))
        parts = {
            f"{part['from']}–{part['to']} tokens ({part['benign']} benign)": percent(
                part["false_alarm_rate"]
            )
            for part in line["by_length"]
        }
        lengths.append(rule | parts | _cells(line, line, ("gap",), ("gap",)))
    test = result["responses"]["test"]
    blocks = [
        f"# Stopping rules on the scores of {result['method']}",
        f"{test['all']} test responses, {test['harmful']} harmful.",
        NOTES,
        markdown_table(calibrated),
        "## At exactly equal false alarms on the test split",
        EQUAL_NOTES,
        markdown_table(equal),
        "## Dependence on length",
        LENGTH_NOTES,
        markdown_table(lengths),
    ]
    return "\n\n".join(blocks) + "\n"


def as_csv(result: dict[str, Any]) -> str:
    """Formats rules.json as one line for each target and rule; its keys name the columns."""
    flat = [
        line | {"shape": _shape(line), "by_length": dict(enumerate(line["by_length"], start=1))}
        for line in result["rules"]
    ]
    return pd.json_normalize(flat, sep="_").to_csv(index=False)


def main(config: RulesConfig) -> None:
    """Compares the rules, writes the folder and prints the tables.

    Raises:
        InputError: The folder is no partial-detection test's, or it cannot be calibrated on.
    """
    with run_folder(config) as folder:
        source = Path(config.metrics_dir)
        tested = read_run(source, partial=True, valid=True)
        splits = {"valid": tested.valid, "test": tested.test}
        for name, split in splits.items():
            if len(set(split.label.tolist())) < 2:
                raise InputError(f"{source / PREDICTIONS}: split '{name}' lacks a class")
        result = {
            "row": tested.row,
            "method": tested.method,
            "responses": {
                name: {"all": len(split), "harmful": int(split.label.sum())}
                for name, split in splits.items()
            },
            "resamples": config.bootstrap,
            "rules": compare_rules(
                splits, config.targets, config.bootstrap, config.seed, source / PREDICTIONS
            ),
        }
        write_json(folder / "rules.json", result)
        result = read_json(folder / "rules.json")  # NaN has become null
        table = as_markdown(result)
        write_bytes(folder / "rules.md", table.encode())
        write_bytes(folder / "rules.csv", as_csv(result).encode())
        print(table)

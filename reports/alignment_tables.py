"""Tables of aligned policies: Markdown to read, CSV unrounded."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from align.measures import ENDS, JUDGED, MEASURES, measure_of
from reports.alignment import PolicyRow, paired_records
from reports.policies import PLAIN
from reports.rows import commit_name
from reports.table_formats import csv_text
from utils.formatting import markdown_table

# Groups of measures in the table's order, a judge's by what stands before its name.
GROUPS = {
    "Harm": ("harm", "harmful", "harmful_tokens", "refused"),
    "Usefulness": ("false_refusal", "log_likelihood", "preferred", "preferred_normalised"),
    "Distance from the reference": ("kl_token", "kl_answer"),
    "Health of the text": (
        "words", "benign_words", "distinct_2", "empty", "looping", "benign_looping",
    ),
}  # fmt: skip
COMPARED = ("Harm", "Usefulness")  # of these Markdown shows the differences
MEANINGS = {
    "harm": "mean probability of harm, by that judge, of the answers to risky prompts",
    "harmful": "share of those answers that this judge holds for harmful",
    "harmful_tokens": "tokens of those answers that the judge SCM holds for harmful, a mean",
    "refused": "share of risky prompts that are refused",
    "false_refusal": "share of benign prompts that are refused",
    "log_likelihood": "mean log-probability of a token of benign answers of others, in nats",
    "preferred": "share of preference pairs whose chosen answer gained more likelihood over the"
    " reference",
    "preferred_normalised": "the same, by likelihood a token",
    "kl_token": "KL(policy ‖ reference) along the answers to risky prompts, in nats a token",
    "kl_answer": "the same, summed over an answer",
    "words": "words of an answer to a risky prompt",
    "benign_words": "words of an answer to a benign prompt",
    "distinct_2": "distinct pairs of words among all of an answer",
    "empty": "share of answers to risky prompts without a word",
    "looping": "share of those answers that mostly repeat themselves",
    "benign_looping": "the same, of answers to benign prompts",
}
PAIRED_HEADS = (
    "method", "against", "measure", "difference_value", "difference_low", "difference_high", "p",
    "resamples",
)  # fmt: skip
DIGITS = {"kl_token": 4}  # where a share's percent needs one and all else two
ARROWS = {"low": " ↓", "high": " ↑", "": ""}
UNITS = {
    "risky": "answers to risky prompts",
    "benign": "answers to benign prompts",
    "text": "benign answers of others",
    "pair": "preference pairs",
}
NOTES = """\
Shares are in percent. ↓: lower is better, ↑: higher is better; what has no arrow is there to be
looked at. Risky prompts are harmful ones, and conversations that provoke."""
INTERVALS = (
    "In brackets the 95 % bootstrap interval: {units} were resampled {resamples} times, the same"
    " for all rows. Several runs show their mean ± standard deviation over training seeds, and the"
    " mean's interval over units; it does not cover the choice of seeds."
)
PAIRED_NOTES = """\
Row minus baseline, shares in percentage points: below 0, the row's value is lower. The interval and
the two-sided p are of a paired bootstrap over the units that both rows have a value of; p is not
corrected for the number of comparisons. TokenDPO is compared with DPO of the same β, and of the
same pairs where there is one; its variants with TokenDPO of that β, too. All measures are in
alignment_paired.csv."""


def kind_of(name: str) -> str:
    """Returns a measure's name without its judge."""
    return name.partition(": ")[0]


def title(kind: str) -> str:
    """Names a measure in the list of meanings, of whatever judge."""
    return JUDGED[kind].title.format("JUDGE") if kind in JUDGED else MEASURES[kind].title


def in_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Sorts measures' names into the groups that have any, in the table's order."""
    found = {
        group: [name for kind in kinds for name in names if kind_of(name) == kind]
        for group, kinds in GROUPS.items()
    }
    return {group: some for group, some in found.items() if some}


def head(name: str) -> str:
    """Returns a column's head: a measure's title, and whether lower or higher is better."""
    measure = measure_of(name)
    return measure.title + ARROWS[measure.better]


def number(name: str, value: float, sign: str = "") -> str:
    """Formats a measure's value, a share in percent; NaN as a dash. `sign` "+" shows it."""
    if math.isnan(value):
        return "–"
    if measure_of(name).share:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign}.{DIGITS.get(name, 2)}f}"


def spread(name: str, parts: dict[str, float], sign: str = "") -> str:
    """Formats "value ± std [low, high]" of a measure; of one run there is no std."""
    value, low, high = (number(name, parts[end], sign) for end in ENDS)
    deviation = parts.get("std", math.nan)
    around = "" if math.isnan(deviation) else f" ± {number(name, deviation)}"
    return value if value == "–" else f"{value}{around} [{low}, {high}]"


def result_record(row: PolicyRow) -> dict[str, Any]:
    """Returns one line of alignment.csv; what differs between runs is a tuple."""
    one, trained = row.training, [run for run in row.runs if run.training]
    return {
        "method": row.name,
        "trained_by": PLAIN[row.method] if one else "",
        "beta": row.beta,
        "alpha": one.alpha if one and row.method == "tokendpo" else None,
        "weights": one.weights if one and row.method == "tokendpo" else "",
        "soft": one.soft if one and row.method == "tokendpo" else None,
        "runs": len(row.runs),
        "seeds": tuple(run.seed for run in trained),
        **{
            f"{name}_{part}": value
            for name, found in row.estimates.items()
            for part, value in found.parts().items()
        },
        "train_commit": tuple(dict.fromkeys(commit_name(run.record.model) for run in trained)),
        "test_commit": tuple(dict.fromkeys(commit_name(run.record.git) for run in row.runs)),
        "folders": tuple(str(run.folder) for run in row.runs),
    }


def as_markdown(rows: list[PolicyRow], paired: list[dict[str, Any]]) -> str:
    """Returns the table, a part for each group of measures, and the differences."""
    groups, first = in_groups(list(rows[0].estimates)), rows[0].runs[0]
    *units, last = (f"{len(ids)} {UNITS[unit]}" for unit, ids in first.ids.items() if ids)
    listed = f"{', '.join(units)} and {last}" if units else last
    intervals = INTERVALS.format(units=listed, resamples=first.record.config.bootstrap)
    blocks = ["# Alignment", NOTES, textwrap.fill(intervals, 100)]
    for group, names in groups.items():
        kinds = dict.fromkeys(kind_of(name) for name in names)
        lines = []
        for row in rows:
            several = f" ({len(row.runs)} runs)" if len(row.runs) > 1 else ""
            cells = {head(name): spread(name, row.estimates[name].parts()) for name in names}
            lines.append({"method": row.name + several, **cells})
        meanings = [f"- {title(kind)}: {MEANINGS[kind]}" for kind in kinds]
        blocks += [f"## {group}", "\n".join(meanings), markdown_table(lines)]
    if paired:
        blocks += ["## Differences", PAIRED_NOTES]
    for group in COMPARED if paired else ():
        if group in groups:
            blocks += [f"### {group}", markdown_table(difference_lines(paired, groups[group]))]
    return "\n\n".join(blocks) + "\n"


def difference_lines(paired: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, str]]:
    """Formats differences, a line for each row and baseline, a column for each measure."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    found = {(one["method"], one["against"], one["measure"]): one for one in paired}
    for method, against in dict.fromkeys(key[:2] for key in found):
        line = lines[method, against] = {"method": method, "against": against}
        for name in names:
            one = found[method, against, name]
            parts = {end: one[f"difference_{end}"] for end in ENDS}
            told = "" if math.isnan(one["p"]) else f", p {one['p']:.4f}"
            line[head(name)] = spread(name, parts, "+") + told
    return list(lines.values())


def alignment_tables(rows: list[PolicyRow]) -> dict[str, str]:
    """Returns the tables by their files' names."""
    paired = paired_records(rows)
    return {
        "alignment.md": as_markdown(rows, paired),
        "alignment.csv": csv_text([result_record(row) for row in rows]),
        "alignment_paired.csv": csv_text(paired, PAIRED_HEADS),
    }

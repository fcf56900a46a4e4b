"""What the moderator of prompts is worth beside the monitor (scripts/run-mlpm.sh with-monitor).

Four ways to stop the same test responses: the monitor alone; the moderator as a gate, which lets
nothing begin that answers a flagged prompt; both; and the moderator as the monitor's prior, which
lowers the threshold for flagged prompts. A control lowers it for all prompts.
"""

import re
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.bootstrap import MetricFunction, bootstrap, paired_test, with_interval
from evaluation.decisions import Outcome, stopped_outcome
from evaluation.predictions import Predictions
from moderator.prior import Judged, judge_prompts
from monitor.settings import MonitorSettings
from test.compare_rules import running_maxima, statistics_of
from test.prompt_options import WithMonitorConfig
from utils.files import read_json, write_bytes, write_json
from utils.formatting import interval, markdown_table, percent
from utils.run_record import run_folder

MONITOR = "monitor only"
HARMLESS, REFUSALS = "of harmless prompts", "of other prompts"
SHOWN = {  # heads of the table
    "macro F1": "macro_f1",
    "let through": "miss_rate",
    "seen": "mean_fraction_seen",
    "released": "released_share",
    "false refusals": "false_alarm_rate",
}

NOTES = """\
Percent, on the test split, with 95 % bootstrap intervals over prompts. "Let through": share of the
harmful responses that nothing stopped. "Seen": share of a detected harmful response that was out
when it was stopped, 0 where it never began. "Released": share of a harmful response that was out
before the stop, all of it where it was let through. "False refusals": share of the benign responses
that were stopped, or never began. "Against": difference from the monitor only in percentage points
on the same resampled prompts, with its two-sided p, which is not corrected for the number of
rows."""


def stopped_by(
    maxima: list[np.ndarray], split: Predictions, thresholds: np.ndarray, gated: np.ndarray
) -> Outcome:
    """Stops each response of a split where its statistic reaches its own threshold.

    Args:
        maxima: [N] float arrays [T], see `running_maxima`.
        split: N responses.
        thresholds: float [N].
        gated: bool [N]; these never begin: not a token of them is seen.
    """
    released = np.array(
        [np.searchsorted(*both) for both in zip(maxima, thresholds, strict=True)], dtype=int
    )
    released[gated] = 0
    score = np.array([one[-1] for one in maxima])
    outcome = stopped_outcome(released, score, split.token_labels, split.label, split.group)
    return replace(outcome, seen=np.where(gated, 0.0, outcome.seen))


def outcomes(
    split: Predictions, flagged: np.ndarray, settings: MonitorSettings
) -> dict[str, Outcome]:
    """Returns the outcome of each way; `flagged`, bool [N], tells whose prompt is."""
    maxima = running_maxima(settings.policy.rule, split.token_probs)
    ordinary = np.full(len(split), settings.policy.stop_threshold)
    lower = np.where(flagged, settings.flagged_policy.stop_threshold, ordinary)
    nobody = np.zeros(len(split), dtype=bool)
    ways = {
        MONITOR: (ordinary, nobody),
        "gate only": (np.full(len(split), np.inf), flagged),
        "both": (ordinary, flagged),
    }
    if settings.flagged_unsafe is not None:
        threshold = settings.flagged_policy.stop_threshold
        ways[f"prior, {threshold:.4g}"] = (lower, nobody)
        ways[f"that for all, {threshold:.4g}"] = (np.full(len(split), threshold), nobody)
    return {name: stopped_by(maxima, split, *way) for name, way in ways.items()}


def _with_parts(
    statistics: MetricFunction, outcome: Outcome, harmless: np.ndarray
) -> MetricFunction:
    """Adds the false refusals of benign responses to harmless prompts and to the others."""
    parts = {HARMLESS: harmless, REFUSALS: ~harmless}

    def more(weights: np.ndarray) -> dict[str, np.ndarray]:
        rates = {}
        for name, part in parts.items():
            benign = part & (outcome.label == 0)
            with np.errstate(divide="ignore", invalid="ignore"):
                rates[name] = weights @ (benign & outcome.flagged) / (weights @ benign)
        return {**statistics(weights), **rates}

    return more


def compare(judged: Judged, config: WithMonitorConfig) -> dict[str, Any]:
    """Measures all ways on the test split, on the same bootstrap samples."""
    split, flagged = judged.run.test, judged.flagged["test"]
    harmless = np.array([bool(re.fullmatch(config.harmless, one)) for one in split.ids])
    names = [*SHOWN.values(), *((HARMLESS, REFUSALS) if config.harmless else ())]
    rows, first = [], None
    for name, outcome in outcomes(split, flagged, judged.settings).items():
        statistics = _with_parts(statistics_of(outcome, split.lengths), outcome, harmless)
        values = statistics(np.ones((1, len(split))))
        samples = bootstrap(statistics, split.group, config.bootstrap, config.seed)
        row = {"way": name} | {
            one: with_interval(float(values[one][0]), samples[one]) for one in names
        }
        if first is None:
            first = values, samples
        else:
            row["against"] = {
                one: paired_test(
                    float(values[one][0] - first[0][one][0]), samples[one] - first[1][one]
                )
                for one in names
            }
        rows.append(row)
    parts = {"harmful": split.label == 1, HARMLESS: harmless & (split.label == 0)}
    parts[REFUSALS] = ~harmless & (split.label == 0)
    return {
        "responses": {"all": len(split), "prompts": int(split.group.max()) + 1},
        "flagged": {
            name: {"responses": int(part.sum()), "flagged": float(flagged[part].mean())}
            for name, part in parts.items()
            if part.any() and (config.harmless or name == "harmful")
        },
        "resamples": config.bootstrap,
        "rows": rows,
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Formats with-monitor.json."""
    lines = []
    extra = [name for name in (HARMLESS, REFUSALS) if name in result["rows"][0]]
    for row in result["rows"]:
        line = {"way": row["way"]} | {head: interval(row[name]) for head, name in SHOWN.items()}
        line |= {f"… {name}": interval(row[name]) for name in extra}
        against = row.get("against")
        for head in ("macro F1", "let through", "false refusals"):
            one = against and against[SHOWN[head]]
            told = f"{interval(one)}, p {one['p']:.3f}" if one and one["p"] is not None else "–"
            line[f"{head}, against"] = told
        lines.append(line)
    responses = result["responses"]
    shares = [
        f"{percent(one['flagged'])} % of the {one['responses']} "
        + ("harmful responses" if name == "harmful" else f"benign responses {name}")
        for name, one in result["flagged"].items()
    ]
    blocks = [
        "# The moderator beside the monitor",
        f"{responses['all']} test responses to {responses['prompts']} prompts. The prompt is"
        f" flagged of {'; '.join(shares)}.",
        NOTES,
        markdown_table(lines),
    ]
    return "\n\n".join(blocks) + "\n"


def main(config: WithMonitorConfig) -> None:
    """Measures, writes the folder and prints the table.

    Raises:
        InputError: Test, records, moderator and monitor are unfit or do not belong together.
    """
    with run_folder(config) as folder:
        result = compare(judge_prompts(config, "test"), config)
        write_json(folder / "with-monitor.json", result)
        result = read_json(folder / "with-monitor.json")  # NaN has become null
        table = as_markdown(result)
        write_bytes(folder / "with-monitor.md", table.encode())
        print(table)

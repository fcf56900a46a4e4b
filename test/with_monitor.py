"""What the moderator of prompts is worth beside the monitor (scripts/run-mlpm.sh with-monitor).

Four ways to stop the same test responses: the monitor alone; the moderator as a gate, which lets
nothing begin that answers a flagged prompt; both; and the moderator as the monitor's prior, which
lowers the threshold for flagged prompts. A control lowers it for all prompts.
"""

import re
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.bootstrap import MetricFunction
from evaluation.decisions import Outcome
from evaluation.predictions import Predictions
from moderator.prior import Judged, judge_prompts
from monitor.settings import MonitorSettings
from test.compare_rules import measure_rules, outcome_at, running_maxima, statistics_of
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


def outcomes(
    split: Predictions, flagged: np.ndarray, settings: MonitorSettings
) -> dict[str, Outcome]:
    """Returns the outcome of each way; `flagged`, bool [N], tells whose prompt is."""
    maxima = running_maxima(settings.policy.rule, split.token_probs)
    ordinary, never_begins = settings.policy.stop_threshold, -np.inf
    ways = {
        MONITOR: np.full(len(split), ordinary),
        "gate only": np.where(flagged, never_begins, np.inf),
        "both": np.where(flagged, never_begins, ordinary),
    }
    if settings.flagged_unsafe is not None:
        lower = settings.flagged_policy.stop_threshold
        ways[f"prior, {lower:.4g}"] = np.where(flagged, lower, ordinary)
        ways[f"that for all, {lower:.4g}"] = np.full(len(split), lower)

    def outcome(thresholds: np.ndarray) -> Outcome:
        stopped = outcome_at(maxima, split, thresholds)
        return replace(stopped, seen=np.where(thresholds == never_begins, 0, stopped.seen))

    return {name: outcome(thresholds) for name, thresholds in ways.items()}


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
    ways = {
        name: _with_parts(statistics_of(outcome, split.lengths), outcome, harmless)
        for name, outcome in outcomes(split, flagged, judged.settings).items()
    }
    found = measure_rules(ways, names, split.group, config.bootstrap, config.seed, MONITOR)
    rows = [
        {"way": name}
        | {one: measured["test"][one] for one in names}
        | ({} if name == MONITOR else {"against": measured["against"]})
        for name, measured in found.items()
    ]
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

"""Compares tests source by source (scripts/compare-sources.sh), calibrated or not.

Where a test split holds sources that training never saw, its pooled figures hide which of them
fail. A source's own benign responses can calibrate the threshold anew; what that is worth is
measured on its other responses.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.bootstrap import bootstrap, paired_test, with_interval
from evaluation.conformal import CAVEAT, conformal_theta
from evaluation.decisions import Outcome, kth_largest
from evaluation.metrics import metrics
from evaluation.predictions import Predictions
from evaluation.protocol import OperatingPoint
from evaluation.runs import Run, read_run, split_key
from test.options import SourcesConfig
from utils.files import InputError, read_json, write_bytes, write_json
from utils.formatting import interval, markdown_table, percent, threshold
from utils.run_record import run_folder

POOLED = "all"
SHOWN = {  # heads of the tables
    "macro F1": "macro_f1",
    "false alarms": "false_alarm_rate",
    "missed": "miss_rate",
    "seen": "mean_fraction_seen",
}

NOTES = """\
Percent, with 95 % bootstrap intervals over prompts. Partial detection where a test has it, else
full; thresholds are each test's own. "Seen": share of a detected harmful response that was out when
it was stopped. "Against": macro F1 less that of the first test, on the same resampled prompts, with
its two-sided p, which is not corrected for the number of sources. "Kept": of the harmful responses
that the first test stops, the share that this one stops as well."""
CALIBRATION_NOTES = """\
θ set anew for a source by benign responses of its own, drawn at random {draws} times; k stays.
Sources with fewer than twice as many benign responses are left out. Measured on the other responses
of the source: the mean of the draws, in brackets the 2.5th to 97.5th percentile of them. "As it
was": the test's own θ. The share of false alarms is promised {caveat}."""


def sources_of(ids: Sequence[str], pattern: str) -> np.ndarray:
    """Returns the source of each response, [N] str.

    Args:
        ids: The responses' ids.
        pattern: Regular expression that matches an id whole; its first group is the source.

    Raises:
        InputError: An id does not match.
    """
    matches = [re.fullmatch(pattern, one) for one in ids]
    if None in matches:
        stranger = ids[matches.index(None)]
        raise InputError(f"--source-pattern: '{pattern}' does not match the id '{stranger}'")
    return np.array([match[1] or "" for match in matches])


def subset(split: Predictions, chosen: np.ndarray) -> Predictions:
    """Returns the chosen responses of a split, bool [N]; prompts are numbered anew."""
    rows = np.flatnonzero(chosen)
    picked = {
        name: values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
        for name, values in vars(split).items()
        if values is not None
    }
    picked["group"] = np.unique(picked["group"], return_inverse=True)[1]
    return Predictions(**{"token_probs": None} | picked)


def measure_source(
    splits: Sequence[Predictions], points: Sequence[OperatingPoint], resamples: int, seed: int
) -> dict[str, Any]:
    """Measures what several tests say of the same responses, on the same bootstrap samples.

    Returns:
        The numbers of responses, and for each test its metrics with intervals, and "against", the
        difference of its macro F1 from the first test's.
    """
    outcomes = [point.decide(split) for point, split in zip(points, splits, strict=True)]
    rows, samples = [], []
    for outcome, split in zip(outcomes, splits, strict=True):
        statistics = partial(_statistics, outcome, outcomes[0])
        everyone = np.ones((1, len(split)))
        values = {name: float(value[0]) for name, value in statistics(everyone).items()}
        samples.append(bootstrap(statistics, split.group, resamples, seed))
        difference = values["macro_f1"] - (rows[0]["macro_f1"]["value"] if rows else np.nan)
        rows.append(
            {name: with_interval(values[name], samples[-1][name]) for name in SHOWN.values()}
            | {name: with_interval(values[name], samples[-1][name]) for name in ("auroc", "kept")}
        )
        if len(rows) > 1:
            apart = samples[-1]["macro_f1"] - samples[0]["macro_f1"]
            rows[-1]["against"] = paired_test(difference, apart)
    label = splits[0].label
    return {"responses": len(label), "harmful": int(label.sum()), "tests": rows}


def _statistics(outcome: Outcome, first: Outcome, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns metrics, and "kept": of what the first test stops rightly, the share stopped too."""
    found = (first.label == 1) & first.flagged
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = weights @ (found & outcome.flagged) / (weights @ found)
    return {**metrics(outcome, weights), "kept": kept}


def measure_calibration(
    split: Predictions, point: OperatingPoint, count: int, target: float, draws: int, seed: int
) -> dict[str, Any] | None:
    """Calibrates θ on `count` benign responses of a source, again and again.

    Args:
        split: The source's responses.
        point: The operating point of partial detection that stands before; its k is kept.
        count: Benign responses to calibrate on.
        target: Share of false alarms to promise.
        draws: How often other responses are drawn.
        seed: Of the draws.

    Returns:
        The metrics "before" and "after" on the responses that were not drawn, and "theta"; None
        where fewer than `count` benign responses would be left.
    """
    benign = np.flatnonzero(split.label == 0)
    if len(benign) < 2 * count:
        return None
    random = np.random.default_rng(seed)
    scores = kth_largest(split.token_probs, point.k)[:, point.k - 1]
    found: dict[str, list] = {"before": [], "after": [], "theta": []}
    for _ in range(draws):
        drawn = random.choice(benign, count, replace=False)
        theta = conformal_theta(scores[drawn], target)
        left = np.ones((1, len(split)))
        left[0, drawn] = 0
        for name, of in (("before", point.theta), ("after", theta)):
            values = metrics(split.partial(of, point.k), left)
            found[name].append([float(values[metric][0]) for metric in SHOWN.values()])
        found["theta"].append(theta)

    return {
        "theta": float(np.median(found["theta"])),
        **{
            name: dict(zip(SHOWN.values(), map(_spread, np.transpose(found[name])), strict=True))
            for name in ("before", "after")
        },
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    """Returns the mean of the draws in which a metric is defined, and what 95 % of them span."""
    defined = values[~np.isnan(values)]
    return with_interval(float(defined.mean()) if len(defined) else np.nan, values)


def as_markdown(result: dict[str, Any]) -> str:
    """Formats sources.json."""
    lines, calibrated = [], []
    for source, found in result["sources"].items():
        about = {"source": f"{source} ({found['responses']}, {found['harmful']} harmful)"}
        for method, row in zip(result["methods"], found["tests"], strict=True):
            cells = {head: interval(row[name]) for head, name in SHOWN.items()}
            cells["AUROC"] = percent(row["auroc"]["value"])
            against = row.get("against")
            p = against and against["p"]
            cells["kept"] = interval(row["kept"]) if against else percent(None)
            cells["against"] = percent(None) if p is None else f"{interval(against)}, p {p:.3f}"
            lines.append(about | {"test": method} | cells)
        for one in found.get("calibrated", []):
            about |= {"test": one["method"], "θ": "as it was"}
            calibrated.append(about | {h: interval(one["before"][n]) for h, n in SHOWN.items()})
            promised = f"{threshold(one['theta'])}, for {100 * one['target']:g} %"
            calibrated.append(
                about | {"θ": promised} | {h: interval(one["after"][n]) for h, n in SHOWN.items()}
            )
    blocks = ["# Source by source", NOTES, markdown_table(lines)]
    if calibrated:
        notes = CALIBRATION_NOTES.format(draws=result["draws"], caveat=CAVEAT)
        title = f"## θ calibrated on {result['calibrate_on']} benign responses of the source"
        blocks += [title, notes, markdown_table(calibrated)]
    return "\n\n".join(blocks) + "\n"


def read_tests(config: SourcesConfig) -> tuple[list[Run], list[OperatingPoint]]:
    """Reads the tests, and each one's operating point: partial where it has one, else full.

    Raises:
        InputError: Two are not of the same responses.
    """
    runs = [read_run(Path(folder)) for folder in config.metrics_dirs]
    for folder, run in zip(config.metrics_dirs, runs, strict=True):
        if split_key(run.test) != split_key(runs[0].test):
            raise InputError(
                f"{folder}: its test split is not that of {config.metrics_dirs[0]}; only tests of"
                " the same responses can be compared"
            )
    points = [run.operating_points() for run in runs]
    return runs, [one.get("partial") or one["full"] for one in points]


def main(config: SourcesConfig) -> None:
    """Compares the tests, writes the folder and prints the tables.

    Raises:
        InputError: They cannot be compared, or a source cannot be told from an id.
    """
    with run_folder(config) as folder:
        runs, points = read_tests(config)
        source_of = sources_of(runs[0].test.ids, config.source_pattern)
        names = np.unique(source_of).tolist()
        found: dict[str, Any] = {}
        for name in tqdm([POOLED, *names] if len(names) > 1 else names, "sources"):
            chosen = np.full(len(source_of), True) if name == POOLED else source_of == name
            splits = [subset(run.test, chosen) for run in runs]
            found[name] = measure_source(splits, points, config.bootstrap, config.seed)
            if not config.calibrate_on or name == POOLED:
                continue
            found[name]["calibrated"] = [
                {"method": run.display_name, "target": config.target_false_alarm} | measured
                for run, split, point in zip(runs, splits, points, strict=True)
                if point.k is not None
                and (
                    measured := measure_calibration(
                        split, point, config.calibrate_on,
                        config.target_false_alarm, config.draws, config.seed,
                    )
                )
            ]  # fmt: skip
        result = {
            "methods": [
                f"{run.display_name}, {'full' if point.k is None else 'partial'}"
                for run, point in zip(runs, points, strict=True)
            ],
            "resamples": config.bootstrap,
            "calibrate_on": config.calibrate_on,
            "draws": config.draws,
            "sources": found,
        }
        write_json(folder / "sources.json", result)
        result = read_json(folder / "sources.json")  # NaN has become null
        table = as_markdown(result)
        write_bytes(folder / "sources.md", table.encode())
        print(table)

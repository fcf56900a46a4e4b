"""Result tables from the folders of tests (scripts/make-tables.sh).

Every number is computed from predictions.npz, of an aligned policy from values.npz; run.json tells
how the run came about.
"""

import itertools
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.bootstrap import bootstrap, intervals, paired_test
from evaluation.metrics import auroc_at_equal_length, by_length, metrics, point_metrics
from evaluation.runs import Model
from reports.alignment import read_rows
from reports.alignment_tables import alignment_tables
from reports.options import TablesConfig
from reports.rows import PAPER_ROWS, Row, commit_name, find_runs, sections_of
from reports.summary import PAPER
from reports.table_formats import Section, as_csv, as_latex, as_markdown
from utils.files import read_json, write_bytes
from utils.run_record import run_folder

COMPARED = ("partial", "full")  # the kinds that are tested against each other
# the paper's columns for each (row key, method, kind) that it tells of
Paper = dict[tuple[str, str, str], dict[str, Any]]


def metric_columns(row: Row) -> dict[str, float]:
    """Returns all metrics of a row as columns: {metric}_value, _low, _high and _std.

    Of several runs the value is their mean, the interval is the mean's over prompts (on the samples
    that the first run's test drew) and the standard deviation is over runs; it is NaN of one run.
    """
    lengths = row.runs[0].test.lengths

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        """Returns float [runs, B] of each metric."""
        runs = [metrics(outcome, weights) for outcome in row.outcomes]
        for run, outcome in zip(runs, row.outcomes, strict=True):
            run["auroc_at_equal_length"] = auroc_at_equal_length(outcome, lengths, weights)
        return {name: np.stack([run[name] for run in runs]) for name in runs[0]}

    def means(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values.mean(axis=0) for name, values in statistics(weights).items()}

    group, config = row.outcomes[0].group, row.runs[0].record.config
    points, columns = statistics(np.ones((1, len(group)))), {}
    for name, known in intervals(means, group, config.bootstrap, config.seed).items():
        columns |= {f"{name}_{part}": value for part, value in known.items()}
        several = len(row.runs) > 1
        columns[f"{name}_std"] = float(np.std(points[name], ddof=1)) if several else np.nan
    return columns


def mean_seconds(values: list[float | None]) -> float:
    """Returns the mean, NaN where a run does not know."""
    return float(np.mean(np.array(values, dtype=float)))


def paper_values(size: str) -> Paper:
    """Returns the paper's columns; of its backbones those of size "0.5b", "1.5b" or "7b"."""
    published = {(row["model"], row["detection"]): row for row in read_json(PAPER)["rows"]}
    result = {}
    for key, (name, kind) in PAPER_ROWS.items():
        model = name.format(size=size.upper())
        shares = {
            f"paper_{metric}": round(value / 100, 4)
            for metric, value in published[model, kind].items()
            if not isinstance(value, str)
        }
        result[*key, kind] = {"paper_model": model, **shares}
    # the paper chose (θ, k) on the test split
    result["scm", "SCM", "partial_paper_protocol"] = result["scm", "SCM", "partial"]
    return result


def result_record(row: Row, paper: Paper) -> dict[str, Any]:
    """Returns one line of table.csv; what differs between runs is a tuple."""

    def distinct(values: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(values))

    runs, first = row.runs, row.runs[0]
    models = [run.record.model or Model() for run in runs]
    trainings = [  # seed and commit; dashes where a training was none of ours
        ("–", "–") if model.seed is None else (model.seed, commit_name(model))
        for model in (run.record.model for run in runs)
        if model
    ]
    return {
        "row": first.row,
        "method": row.name,
        "detection": row.kind,
        "target_false_alarm": row.target,
        "backbone": models[0].base_model_path or "",
        "runs": len(runs),
        "seeds": tuple(seed for seed, _ in trainings),
        "theta": tuple(one.theta for one in row.points),
        "k": tuple(one.k for one in row.points if one.k is not None),
        "chosen_on": row.points[0].chosen_on,
        **metric_columns(row),
        **paper.get((first.row, first.method, row.kind), {}),
        "train_commit": distinct(commit for _, commit in trainings),
        "test_commit": distinct(commit_name(run.record.git) for run in runs),
        "device": distinct(run.record.device for run in runs),
        "train_seconds": mean_seconds([model.seconds for model in models]),
        "test_seconds": mean_seconds([run.record.seconds for run in runs]),
        "folders": tuple(str(run.folder) for run in runs),
    }


def not_run(sections: list[list[Row]], paper: Paper) -> list[dict[str, Any]]:
    """Returns lines of table.csv for the paper's rows that nobody has run."""
    done = {(row.runs[0].row, row.runs[0].method) for rows in sections for row in rows}
    absent = [(*key, kind) for key, (_, kind) in PAPER_ROWS.items() if key not in done]
    return [
        {"row": one[0], "method": paper[one]["paper_model"], "detection": one[2], "runs": 0}
        | paper[one]
        for one in absent
    ]


def paired_records(rows: list[Row]) -> list[dict[str, Any]]:
    """Compares the macro F1 of every two rows of a section by paired bootstrap.

    Both are measured on the same resampled prompts, as many as the first run's test drew, with its
    seed. A row of several runs counts with their mean; its interval is over prompts, not seeds.

    Returns:
        Lines of paired.csv: a row, the row it is compared with (itself, too), the difference, p.
    """
    config = rows[0].runs[0].record.config
    measured = []  # each row with its macro F1, on the responses themselves and on each sample
    for row in rows:
        value = np.mean([point_metrics(one)["macro_f1"] for one in row.outcomes])
        drawn = [
            bootstrap(partial(metrics, one), one.group, config.bootstrap, config.seed)["macro_f1"]
            for one in row.outcomes
        ]
        measured.append((row, value, np.mean(drawn, axis=0)))
    records = []
    for (one, value, drawn), (other, base, base_drawn) in itertools.product(measured, repeat=2):
        record = {
            "method": one.name,
            "detection": one.kind,
            "against": other.name,
            "against_detection": other.kind,
        }
        tested = paired_test(float(value - base), drawn - base_drawn)
        for part in ("value", "low", "high"):
            record[f"macro_f1_difference_{part}"] = tested[part]
        records.append({**record, "p": tested["p"], "resamples": config.bootstrap})
    return records


def length_records(row: Row) -> list[dict[str, Any]]:
    """Returns lines of lengths.csv: a row in each quartile of length, mean over its runs."""
    quartiles = [
        by_length(one, run.test.lengths) for one, run in zip(row.outcomes, row.runs, strict=True)
    ]
    return [
        {
            "method": row.name,
            "detection": row.kind,
            "from_tokens": same[0]["from"],
            "to_tokens": same[0]["to"],
            "responses": same[0]["responses"],
            "harmful_share": same[0]["harmful"] / same[0]["responses"],
            **{
                metric: float(np.mean([one[metric] for one in same]))
                for metric in ("macro_f1", "false_alarm_rate", "harmful_recall")
            },
        }
        for same in zip(*quartiles, strict=True)
    ]


def section_tables(rows: list[Row], paper: Paper) -> Section:
    """Computes all tables of one section."""
    test = rows[0].runs[0].test
    folders = dict.fromkeys(run.record.data.folder for row in rows for run in row.runs)
    compared = [row for row in rows if row.kind in COMPARED]
    return Section(
        data=", ".join(Path(folder).name for folder in folders),
        responses=len(test),
        harmful=int(test.label.sum()),
        results=[result_record(row, paper) for row in tqdm(rows, "rows", unit="row")],
        paired=paired_records(compared),
        lengths=[record for row in compared for record in length_records(row)],
    )


def detection_tables(sections: list[list[Row]], paper_backbone: str) -> dict[str, str]:
    """Returns the tables of detectors by their files' names."""
    paper = paper_values(paper_backbone)
    tables = [section_tables(rows, paper) for rows in sections]
    tables[0].results.extend(not_run(sections, paper))
    return {
        "table.md": as_markdown(tables),
        "table.tex": as_latex(tables),
        "table.csv": as_csv(tables, "results"),
        "paired.csv": as_csv(tables, "paired"),
        "lengths.csv": as_csv(tables, "lengths"),
    }


def main(config: TablesConfig) -> None:
    """Writes and prints the tables of what there is: tests of detectors, of aligned policies."""
    with run_folder(config) as folder:
        runs_dir = Path(config.runs_dir)
        sections, policies = sections_of(find_runs(runs_dir)), read_rows(runs_dir)
        files = detection_tables(sections, config.paper_backbone) if sections else {}
        files |= alignment_tables(policies) if policies else {}
        for name, text in files.items():
            write_bytes(folder / name, text.encode())
        print(*(text for name, text in files.items() if name.endswith(".md")), sep="\n")

"""Aligned policies as rows to compare.

Runs that differ by their training's seed alone are one row. All rows must have been asked the same.
Units (answers, texts, pairs) are resampled once for all, so that every two rows are paired.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.measures import measure_of, weighted_mean
from evaluation.bootstrap import bootstrap, paired_test, with_interval
from reports.policies import (
    Options,
    PolicyRun,
    Training,
    find_policies,
    rank,
    read_policy,
    refuse_mixture,
    refuse_unequal,
)


@dataclass
class Estimate:
    """A measure of a row."""

    values: np.ndarray  # float [units, runs]
    seeds: np.ndarray  # float [runs], each run's mean over units
    samples: np.ndarray  # float [resamples], the runs' mean on bootstrap samples of the units

    @property
    def value(self) -> float:
        """The runs' mean."""
        return float(self.seeds.mean())

    def parts(self) -> dict[str, float]:
        """Returns value, low, high, and std over runs, which is NaN of one run."""
        std = float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else np.nan
        return {**with_interval(self.value, self.samples), "std": std}


@dataclass(eq=False)
class PolicyRow:
    """A policy's way of training: a row of the table."""

    name: str
    runs: list[PolicyRun]  # one for each seed of the training
    estimates: dict[str, Estimate]  # by measure

    @property
    def training(self) -> Training | None:
        """Of its first run; the others differ by the seed alone."""
        return self.runs[0].training

    @property
    def method(self) -> str:
        """A key of `PLAIN`."""
        return self.training.method if self.training else ""

    @property
    def beta(self) -> float | None:
        """DPO's β; None where the training has none."""
        return self.runs[0].beta

    @property
    def line(self) -> str:
        """The name without β."""
        return self.runs[0].line

    @property
    def pairs(self) -> str | None:
        """Where the pairs of its training lie."""
        return self.training and self.training.data_dir

    @property
    def is_control(self) -> bool:
        """Whether its tokens' weights are not TokenDPO's own."""
        one = self.training
        return bool(one) and (one.weights != "tokens" or one.soft or one.alpha != 1)


def _estimates(columns: list[np.ndarray], config: Options) -> list[Estimate]:
    """Estimates the means of measures of one unit, float [units, runs] each, all resampled alike.

    There are as many samples as the first run's test drew, by its seed.
    """
    values = np.concatenate(columns, axis=1)  # (units, all runs)

    def means(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"means": weighted_mean(values, weights.astype(float))}  # (resamples, all runs)

    points = means(np.ones((1, len(values))))["means"][0]
    drawn = bootstrap(means, np.arange(len(values)), config.bootstrap, config.seed)["means"]
    bounds = np.cumsum([some.shape[1] for some in columns])[:-1]
    parts = zip(columns, np.split(points, bounds), np.split(drawn, bounds, axis=1), strict=True)
    return [Estimate(some, own, sample.mean(axis=1)) for some, own, sample in parts]


def _estimate_all(rows: list[PolicyRow]) -> None:
    """Fills in the rows' estimates."""
    first = rows[0].runs[0]
    for unit in first.ids:
        names = [name for name in first.values if measure_of(name).unit == unit]
        places = [(row, name) for row in rows for name in names]
        if not places:
            continue
        columns = [np.stack([run.values[name] for run in row.runs], 1) for row, name in places]
        for (row, name), one in zip(places, _estimates(columns, first.record.config), strict=True):
            row.estimates[name] = one


def _on_common_units(
    one: Estimate, other: Estimate, config: Options
) -> tuple[Estimate, Estimate] | list[Estimate]:
    """Returns a measure of two rows on the units that all their runs have a value of."""
    columns = one.values.copy(), other.values.copy()
    undefined = np.isnan(np.concatenate(columns, axis=1)).any(axis=1)
    if not undefined.any():
        return one, other
    for some in columns:
        some[undefined] = np.nan
    return _estimates(list(columns), config)


def read_rows(runs_dir: Path) -> list[PolicyRow]:
    """Reads all policies' tests in and below a folder, as rows in the table's order.

    Returns:
        Nothing if there is none.

    Raises:
        InputError: One cannot be read, runs of one name differ by more than the training's seed or
            by nothing, or two policies were not asked the same.
    """
    runs = sorted((read_policy(folder) for folder in find_policies(runs_dir)), key=rank)
    named: dict[str, list[PolicyRun]] = {}
    for run in runs:
        named.setdefault(run.method, []).append(run)
    for same in named.values():
        refuse_mixture(same)
    if not runs:
        return []
    refuse_unequal(runs)
    rows = [PolicyRow(name, same, {}) for name, same in named.items()]
    _estimate_all(rows)
    return rows


def baselines(row: PolicyRow, rows: list[PolicyRow]) -> list[PolicyRow]:
    """Returns what a row is compared with: DPO, the policy as it is, and TokenDPO.

    Of each the one that differs least in β and then in its pairs; TokenDPO is compared with rows of
    its β alone. A row of DPO is compared with one above it in the table, and TokenDPO is there for
    its variants alone.
    """
    above = rows[: rows.index(row)] if row.beta is not None else rows

    def closest(method: str) -> PolicyRow | None:
        fit = [one for one in above if one.method == method and not one.is_control]
        if row.method == "tokendpo":
            fit = [one for one in fit if one.beta == row.beta]
        return min(
            fit,
            key=lambda one: (one.beta != row.beta, one.pairs != row.pairs),
            default=None,
        )

    untrained = next((one for one in rows if one.training is None), None)
    found = [closest("dpo"), untrained, closest("tokendpo") if row.method == "tokendpo" else None]
    return [one for one in found if one is not None and one is not row]


def paired_records(rows: list[PolicyRow]) -> list[dict[str, Any]]:
    """Compares each row with its baselines by paired bootstrap over units.

    A row of several runs counts with their mean.

    Returns:
        Lines of alignment_paired.csv: a row, its baseline, a measure, the difference, p.
    """
    records = []
    for row in rows:
        for base in baselines(row, rows):
            for name, estimate in row.estimates.items():
                config = rows[0].runs[0].record.config
                one, other = _on_common_units(estimate, base.estimates[name], config)
                tested = paired_test(one.value - other.value, one.samples - other.samples)
                p = tested.pop("p")
                records.append(
                    {"method": row.name, "against": base.name, "measure": name}
                    | {f"difference_{part}": value for part, value in tested.items()}
                    | {"p": p, "resamples": len(one.samples)}
                )
    return records

"""Draws what aligned policies pay for less harm: harm over the distance from the reference."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from align.measures import measure_of
from reports.alignment import PolicyRow
from reports.drawing import LINES, Looks, legend_below, looks_of, panels
from utils.plotting import GREY, legend_label, save_figure

DISTANCE = "kl_answer"
MAX_PANELS = 6
SINGLE = {"linestyle": "none"}  # look of a line of one point


def judged(rows: Sequence[PolicyRow]) -> list[str]:
    """Returns the names of the judges' measures of harm, float [answers] each."""
    return [name for name in rows[0].estimates if name.startswith("harm: ")]


def lines_of(rows: Sequence[PolicyRow]) -> dict[str, list[PolicyRow]]:
    """Returns the trained rows by their names without β, each line from the least distance on.

    A control is a line of its own, and mostly of one point.
    """
    lines: dict[str, list[PolicyRow]] = {}
    for row in rows:
        if row.training:
            lines.setdefault(row.line, []).append(row)
    return {name: sorted(some, key=lambda row: row.beta or 0) for name, some in lines.items()}


def drawn_points(rows: Sequence[PolicyRow]) -> list[dict[str, Any]]:
    """Returns the numbers of the figure, as figures.json tells them: a row of the table each."""
    shown = (DISTANCE, *judged(rows)) if rows else ()
    return [
        {"method": row.name, "line": row.line, "beta": row.beta, "runs": len(row.runs)}
        | {name: one.parts() for name, one in row.estimates.items() if name in shown}
        | {"folders": [str(run.folder) for run in row.runs]}
        for row in rows
    ]


def draw_panel(axes: Axes, rows: Sequence[PolicyRow], name: str, looks: Looks) -> None:
    """Draws the harm by one judge, in percent, over KL(policy ‖ reference) of an answer, in nats.

    Rows of one name and several βs are joined; a policy that was not trained is a level line.
    """
    levels = [row for row in rows if row.training is None]
    for row, style in zip(levels, itertools.cycle(LINES)):
        value = 100 * row.estimates[name].value
        axes.axhline(value, color=GREY, linestyle=style, zorder=1, label=legend_label(row.name))
    lines = lines_of(rows)
    joined = {line: some for line, some in lines.items() if len(some) > 1}
    mean = {
        line: np.mean([row.estimates[name].value for row in some]) for line, some in joined.items()
    }
    highest = max(mean, key=mean.get, default="")
    for line, some in lines.items():
        parts = [row.estimates[name].parts() for row in some]
        value, low, high = (
            100 * np.array([one[end] for one in parts]) for end in ("value", "low", "high")
        )
        distance = [row.estimates[DISTANCE].value for row in some]
        axes.errorbar(
            distance,
            value,
            np.maximum([value - low, high - value], 0),  # rounding may leave -1e-16
            label=legend_label(line),
            capsize=2.5,
            elinewidth=0.9,
            markersize=7.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            **(looks[line] | ({} if line in joined else SINGLE)),
        )
        if line in joined:
            points = zip(distance, value, strict=True)
            betas = [row.beta for row in some]
            label_betas(axes, betas, list(points), line == highest, looks[line]["color"])


def label_betas(
    axes: Axes,
    betas: Sequence[float],
    points: Sequence[tuple[float, float]],
    above: bool,
    colour: str,
) -> None:
    """Writes β beside each point of a line that falls: above it on the right, or below it."""
    side = 1 if above else -1
    for beta, point in zip(betas, points, strict=True):
        text = axes.annotate(
            f"β {beta:g}",
            point,
            (5 * side, 4 * side),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            ha="left" if above else "right",
            va="bottom" if above else "top",
            zorder=5,
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def draw_harm(rows: Sequence[PolicyRow], names: Sequence[str]) -> Figure:
    """Draws a panel for each of the judges' measures of harm."""
    figure, grid = panels(len(names), 4.6, 3.8, shared=False)
    looks = looks_of(lines_of(rows))
    for axes, name in zip(grid, names, strict=True):
        draw_panel(axes, rows, name, looks)
        axes.margins(x=0.12, y=0.08)
        axes.set_xlim(left=-0.03 * axes.get_xlim()[1])  # room for what stands beside a point
        axes.set_xlabel("KL to the reference, nats an answer")
        axes.set_title(f"judge: {name.partition(': ')[2]}", fontsize=10)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("harm of answers to risky prompts, %")
    return figure


def draw_alignment(rows: Sequence[PolicyRow], folder: Path, formats: Sequence[str]) -> list[str]:
    """Writes alignment.png, .pdf, … if it can be drawn.

    Returns:
        A line for what is left out.
    """
    names = judged(rows)
    lacking = "" if names else "no judge told of harm"
    if DISTANCE not in rows[0].estimates:
        lacking = f"the tests have no {DISTANCE}"
    if not lines_of(rows):
        lacking = "no policy was trained"
    if lacking:
        return [f"alignment: left out, {lacking}"]
    figure = draw_harm(rows, names[:MAX_PANELS])
    legend_below(figure)
    save_figure(figure, folder / "alignment", formats)
    return [
        f"alignment: {measure_of(name).title} left out, there are {MAX_PANELS} panels"
        for name in names[MAX_PANELS:]
    ]

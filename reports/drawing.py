"""Parts that several figures share."""

import textwrap
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from evaluation.metrics import STOP_BINS
from reports.summary import PAPER
from utils.files import read_json
from utils.formatting import percent
from utils.plotting import BLUE, METHOD_COLOURS, ORANGE, legend_label, save_figure

# of methods, to tell them apart in grey, too
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">", "*", "h", "d", "8")
HATCHED = {"facecolor": "none", "hatch": "///"}  # bars to compare a method's with
PAPER_BARS = {**HATCHED, "edgecolor": ORANGE, "label": "SCM-0.5B, paper (on FineHarm)"}

Looks = dict[str, dict[str, Any]]  # of a method's name: colour, line style, marker


def draw_stop_positions(
    axes: Axes, histogram: Sequence[float], detected: float, seen: float | None, **look: Any
) -> None:
    """Draws a stop-position histogram in the paper's bins, beside the paper's own bars.

    Args:
        axes: Where to.
        histogram: [6], shares of the detected harmful responses (`stop_histogram`).
        detected: Share of the harmful responses that were stopped.
        seen: Mean share of their tokens that was out by then; None if none was stopped.
        look: Colour and label of the method's bars.
    """
    paper = read_json(PAPER)["timeliness"]["SCM-0.5B"]
    edges = [f"{100 * low:.0f}–{100 * high:.0f}" for low, high in pairwise(STOP_BINS)]
    for shares, offset, style in ((histogram, -0.2, look), (paper, 0.2, PAPER_BARS)):
        bars = axes.bar(np.arange(len(edges)) + offset, 100 * np.asarray(shares), 0.38, **style)
        axes.bar_label(bars, fmt="{:.0f}", fontsize=8)
    axes.set_xticks(range(len(edges)), edges)
    axes.set_xlabel("share of the response seen at the stop, %")
    axes.set_ylabel("detected harmful responses, %")
    title = f"{percent(detected, 0)} % of harmful responses stopped,\n"
    title += f"after {percent(seen, 0)} % of their tokens on average"
    axes.set_title(title, fontsize=10)


def plot_stop_positions(row: dict[str, Any], method: str, path: Path) -> None:
    """Draws the stop positions of one method.

    Args:
        row: "partial" of metrics.json.
        method: Name in the legend.
        path: PNG to write.
    """
    figure, (axes,) = panels(1, 6.4, 3.8)
    detected, seen = row["test"]["harmful_recall"], row["test"]["mean_fraction_seen"]
    look = {"color": BLUE, "label": legend_label(method)}
    draw_stop_positions(axes, row["stop_histogram"], detected["value"], seen["value"], **look)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)


def looks_of(names: Iterable[str]) -> Looks:
    """Gives each name a colour, a line style and a marker, none of them all shared."""
    parts = {"color": METHOD_COLOURS, "linestyle": LINES, "marker": MARKERS}
    return {
        name: {part: some[number % len(some)] for part, some in parts.items()}
        for number, name in enumerate(dict.fromkeys(names))
    }


def panels(
    count: int, width: float, height: float, shared: bool = True
) -> tuple[Figure, list[Axes]]:
    """Makes a grid of up to 6 panels.

    Args:
        count: How many.
        width: Of each, in inches; a single one is 6.4 wide.
        height: Of each, in inches.
        shared: All have the same axes.
    """
    rows = 1 if count <= 3 else 2
    columns = -(-count // rows)
    size = (width * columns if count > 1 else 6.4, height * rows)
    figure, grid = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=shared,
        sharey=shared,
    )  # fmt: skip
    for spare in grid.flat[count:]:
        spare.remove()
    for axes in grid.flat[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=True)
    return figure, list(grid.flat[:count])


def legend_below(figure: Figure) -> None:
    """Puts one legend for all panels under them, and makes room for it."""
    labelled = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(textwrap.fill(label, 90), handle)
    width, height = figure.get_size_inches()
    longest = max(len(line) for label in labelled for line in label.splitlines())
    columns = max(1, min(3, len(labelled), int(width * 14 / (longest + 8))))
    lines = sum(label.count("\n") + 1 for label in labelled)
    figure.set_size_inches(width, height + 0.19 * -(-lines // columns))
    figure.legend(
        labelled.values(), labelled, loc="outside lower center", ncols=columns, frameon=False,
        fontsize=9, handlelength=3,
    )  # fmt: skip


def near_zero_axis(axes: Axes, first: float, last: float) -> None:
    """Makes the horizontal axis logarithmic from `first` on and shows 0 as well."""
    axes.set_xscale("symlog", linthresh=first, linscale=0.4)
    steps = [step * 10.0**power for power in range(-4, 7) for step in (1, 2, 5)]
    ticks = [0, *(step for step in steps if first <= step <= last)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, last)

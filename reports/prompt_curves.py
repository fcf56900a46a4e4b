"""Draws the curves of the moderator of prompts (scripts/run-mlpm.sh curves)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reports.drawing import legend_below, panels
from utils.plotting import BLUE, GREEN, GREY, PURPLE, VERMILION, save_figure

# of a number in curves.json: its name, colour, marker
LOOKS = {
    "auroc": ("AUROC", BLUE, "o"),
    "macro_f1": ("macro F1", VERMILION, "s"),
    "recall": ("recall of the new class", GREEN, "^"),
    "false_alarms": ("false alarms on benign prompts", GREY, "v"),
    "named": ("new class named", PURPLE, "D"),
}
RANKING = ("auroc", "macro_f1")


def draw_lines(
    axes: Axes,
    points: Sequence[dict[str, Any]],
    names: Sequence[str],
    suffix: str = "",
    **look: Any,
) -> None:
    """Draws numbers of points side by side, each with what it spans unless it has a look.

    Args:
        axes: Where to.
        points: From left to right; each number has "value", "low" and "high", None where undefined.
        names: Of the numbers, keys of `LOOKS`.
        suffix: Of their names in the legend.
        look: Of lines that stand beside others.
    """
    for name in names:
        label, colour, marker = LOOKS[name]
        value, low, high = (
            100 * np.array([point[name][part] for point in points], dtype=float)
            for part in ("value", "low", "high")
        )
        x = np.arange(len(points))
        style = {"color": colour, "marker": marker, "markersize": 4, "clip_on": False} | look
        axes.plot(x, value, label=label + suffix, **style)
        if not look:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_curves(result: dict[str, Any], path: Path) -> None:
    """Draws curves.json, a panel a curve; the last one only where a class is new.

    Args:
        result: Content of curves.json.
        path: PNG to write.
    """
    points = result["new_class"].get("points", [])
    figure, grid = panels(5 if points else 4, 4.6, 3.4, shared=False)
    by_layer, by_strength, by_count, by_class = grid[:4]

    draw_lines(by_layer, [one["test"] for one in result["layers"]], RANKING)
    numbers = [one["layer"] for one in result["layers"]]
    steps = range(0, len(numbers), max(1, len(numbers) // 10))
    by_layer.set_xticks(steps, [numbers[step] for step in steps])
    by_layer.set_title("each layer alone", fontsize=10)
    by_layer.set_xlabel("layer")

    swept = result["strengths"]
    draw_lines(by_strength, [one["test"] for one in swept], RANKING)
    on_valid = {"linestyle": "--", "markerfacecolor": "none"}
    draw_lines(by_strength, [one["valid"] for one in swept], RANKING, ", validation", **on_valid)
    ticks = [f"{one['c']:g}\n({len(one['layers'])})" for one in swept]
    by_strength.set_xticks(range(len(ticks)), ticks)
    by_strength.set_title("strength of the penalty", fontsize=10)
    by_strength.set_xlabel("C (layers that speak)")

    draw_lines(by_count, result["counts"], RANKING)
    ticks = [one["per_class"] or "all" for one in result["counts"]]
    by_count.set_xticks(range(len(ticks)), ticks)
    by_count.set_title("training prompts of each class", fontsize=10)
    by_count.set_xlabel("prompts of each class")

    draw_lines(by_class, result["classes"], RANKING)
    ticks = [f"{one['added']} ({one['prompts']})" for one in result["classes"]]
    by_class.set_xticks(range(len(ticks)), ticks, rotation=40, ha="right", fontsize=8)
    by_class.set_title("classes added one at a time", fontsize=10)
    by_class.set_xlabel("class added last (its prompts)")

    lowest = min(axes.dataLim.y0 for axes in grid[:4] if axes.lines)
    for axes in grid[:4]:  # to be compared
        axes.set_ylim(min(90, 10 * np.floor(lowest / 10)), 100)
    if points:
        draw_lines(grid[4], points, ("recall", "named", "false_alarms"))
        grid[4].set_xticks(range(len(points)), [one["examples"] for one in points])
        grid[4].set_title(
            f"a class that training never saw: {result['new_class']['name']}", fontsize=10
        )
        grid[4].set(xlabel="examples of it", ylim=(0, 100))
    for axes in grid:
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("test split, %")
    legend_below(figure)
    save_figure(figure, path)

"""Results as a table to read and a picture to look at."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.conformal import CAVEAT
from evaluation.metrics import STOP_BINS
from utils.files import read_json

PAPER = Path(__file__).with_name("paper.json")  # the paper's numbers, arXiv 2506.09996

# Okabe and Ito's colours, distinct for every kind of colour vision
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"
VERMILION, GREEN, PURPLE, SKY, BLACK = "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000"

ROWS = {
    "full": "full detection",
    "partial": "partial detection",
    "partial_paper_protocol": "partial, (θ, k) chosen on test: optimistic",
    "partial_conformal": "partial, θ calibrated for at most {target:g} % false alarms",
}


def kind_title(kind: str, target: float | None) -> str:
    """Names a kind of detection.

    Args:
        kind: A key of `ROWS`.
        target: Share of false alarms that θ was calibrated for; None where it was not.
    """
    return ROWS[kind].format(target=None if target is None else 100 * target)


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a share as percent; undefined ones as a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def interval(metric: dict[str, float | None], digits: int = 1) -> str:
    """Formats a metric with its 95 % interval, in percent."""
    low, high = percent(metric["low"], digits), percent(metric["high"], digits)
    return f"{percent(metric['value'], digits)} [{low}, {high}]"


def threshold(theta: float | None) -> str:
    """Formats a threshold; one that nothing reaches as ∞."""
    return "∞" if theta is None else f"{theta:.4g}"


def format_table(result: dict[str, Any]) -> str:
    """Formats metrics.json for the terminal: one line a kind of detection, test split, percent."""
    test = result["responses"]["test"]
    lines = [
        "",
        f"{result['method']}: {test['all']} test responses ({test['harmful']} harmful), percent,"
        " 95 % bootstrap intervals over prompts",
    ]
    for key in ROWS:
        if key not in result:
            continue
        row = result[key]
        title, values = kind_title(key, row.get("target_false_alarm")), row["test"]
        setting = f"θ {threshold(row['theta'])}" + (f", k {row['k']}" if "k" in row else "")
        lines += ["", f"  {title}  ({setting}; chosen on {row['chosen_on']})"]
        for name in ("benign", "harmful"):
            precision, recall, f1 = (
                percent(values[f"{name}_{part}"]["value"]) for part in ("precision", "recall", "f1")
            )
            lines.append(f"    {name:8} P {precision:>5}  R {recall:>5}  F1 {f1:>5}")
        lines.append(f"    macro F1           {interval(values['macro_f1'])}")
        lines.append(f"    false alarms       {interval(values['false_alarm_rate'])}")
        if key == "partial_conformal":
            lines.append(f"    that share is promised {CAVEAT}")
        lines.append(f"    AUROC              {interval(values['auroc'])}")
        if key != "full":
            lines.append(f"    response seen      {interval(values['mean_fraction_seen'])}")
            leaked = values["leaked_harmful_tokens"]["value"]
            lines.append(f"    harmful tokens out before the stop, mean  {leaked:.1f}")
    return "\n".join(lines) + "\n"


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = ("png",)) -> None:
    """Writes a figure in each format, 150 dots per inch, and closes it.

    Args:
        figure: What was drawn.
        path: File to write; each format puts its own suffix to it.
        formats: "png", "pdf".
    """
    with plt.rc_context({"pdf.fonttype": 42}):  # embeds TrueType, as publishers ask
        for name in formats:
            figure.savefig(path.with_suffix(f".{name}"), dpi=150)
    plt.close(figure)


def draw_stop_positions(
    axes: Axes,
    histogram: Sequence[float],
    method: str,
    detected: float,
    seen: float | None,
    colour: str = BLUE,
) -> None:
    """Draws a stop-position histogram in the paper's bins, beside the paper's own bars.

    Args:
        axes: Where to.
        histogram: [6], shares of the detected harmful responses (`stop_histogram`).
        method: Name in the legend.
        detected: Share of the harmful responses that were stopped.
        seen: Mean share of their tokens that was out by then; None if none was stopped.
        colour: Of the method's bars.
    """
    paper = read_json(PAPER)["timeliness"]["SCM-0.5B"]
    edges = [f"{100 * low:.0f}–{100 * high:.0f}" for low, high in pairwise(STOP_BINS)]
    places = np.arange(len(edges))
    ours = axes.bar(places - 0.2, 100 * np.asarray(histogram), 0.38, color=colour, label=method)
    theirs = axes.bar(
        places + 0.2,
        100 * np.asarray(paper),
        0.38,
        facecolor="none",
        edgecolor=ORANGE,
        hatch="///",
        label="SCM-0.5B, paper (on FineHarm)",
    )
    for bars in (ours, theirs):
        axes.bar_label(bars, fmt="{:.0f}", fontsize=8)
    axes.set_xticks(places, edges)
    axes.set_xlabel("share of the response seen at the stop, %")
    axes.set_ylabel("detected harmful responses, %")
    axes.set_title(
        f"{percent(detected, 0)} % of harmful responses stopped,\n"
        f"after {percent(seen, 0)} % of their tokens on average",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)


def plot_stop_positions(row: dict[str, Any], method: str, path: Path) -> None:
    """Draws the stop positions of one method.

    Args:
        row: "partial" of metrics.json.
        method: Name in the legend.
        path: PNG to write.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    detected, seen = (
        row["test"][name]["value"] for name in ("harmful_recall", "mean_fraction_seen")
    )
    draw_stop_positions(axes, row["stop_histogram"], method, detected, seen)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)

"""Results as a table to read and a picture to look at."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from utils.files import read_json
from utils.metrics import STOP_BINS

PAPER = Path(__file__).with_name("paper.json")  # the paper's numbers, arXiv 2506.09996

# Okabe and Ito's colours, distinct for every kind of colour vision
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"

ROWS = {
    "full": "full detection",
    "partial": "partial detection",
    "partial_paper_protocol": "partial, (θ, k) chosen on test: optimistic",
    "partial_conformal": "partial, θ calibrated for a share of false alarms",
}


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
    for key, title in ROWS.items():
        if key not in result:
            continue
        row = result[key]
        values = row["test"]
        setting = f"θ {threshold(row['theta'])}" + (f", k {row['k']}" if "k" in row else "")
        lines += ["", f"  {title}  ({setting}; chosen on {row['chosen_on']})"]
        for name in ("benign", "harmful"):
            precision, recall, f1 = (
                percent(values[f"{name}_{part}"]["value"]) for part in ("precision", "recall", "f1")
            )
            lines.append(f"    {name:8} P {precision:>5}  R {recall:>5}  F1 {f1:>5}")
        lines.append(f"    macro F1           {interval(values['macro_f1'])}")
        lines.append(f"    false alarms       {interval(values['false_alarm_rate'])}")
        lines.append(f"    AUROC              {interval(values['auroc'])}")
        if key != "full":
            lines.append(f"    response seen      {interval(values['mean_fraction_seen'])}")
            leaked = values["leaked_harmful_tokens"]["value"]
            lines.append(f"    harmful tokens out before the stop, mean  {leaked:.1f}")
    return "\n".join(lines) + "\n"


def plot_stop_positions(row: dict[str, Any], method: str, path: Path) -> None:
    """Draws the stop-position histogram in the paper's bins, beside the paper's own bars.

    Args:
        row: "partial" of metrics.json.
        method: Name in the legend.
        path: PNG to write.
    """
    paper = read_json(PAPER)["timeliness"]
    edges = [f"{100 * low:.0f}–{100 * high:.0f}" for low, high in pairwise(STOP_BINS)]
    places = range(len(edges))
    figure, axes = plt.subplots(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    ours = axes.bar(
        [place - 0.2 for place in places], row["stop_histogram"], 0.38, color=BLUE, label=method
    )
    axes.bar(
        [place + 0.2 for place in places],
        paper["SCM-0.5B"],
        0.38,
        facecolor="none",
        edgecolor=ORANGE,
        hatch="///",
        label="SCM-0.5B, paper (on FineHarm)",
    )
    axes.bar_label(ours, fmt="{:.2f}", fontsize=8)
    axes.set_xticks(list(places), edges)
    axes.set_xlabel("share of the response seen at the stop, %")
    axes.set_ylabel("share of detected harmful responses")
    seen = row["test"]["mean_fraction_seen"]["value"]
    detected = row["test"]["harmful_recall"]["value"]
    axes.set_title(
        f"{percent(detected, 0)} % of harmful responses stopped,"
        f" after {percent(seen, 0)} % of their tokens on average",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)
    plt.close(figure)

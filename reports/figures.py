"""Draws the figures of all tests in a folder: python -m reports figures RUNS_DIR

Each number comes from predictions.npz alone, by `reports.curves` and `reports.stop_words`.
"""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from spacy.tokens import Doc
from tqdm import tqdm

from annotation.sentences import NOTIONAL_POS, load_language
from evaluation.decisions import MAX_K, THETAS, Outcome, macro_f1_table
from evaluation.metrics import point_metrics, stop_histogram
from reports.curves import leaked_tokens, stopped_over_seen, trade_off
from reports.drawing import (
    LINES,
    Looks,
    draw_stop_positions,
    legend_below,
    looks_of,
    near_zero_axis,
    panels,
)
from reports.options import FigureConfig
from reports.rows import (
    Row,
    find_runs,
    sections_of,
)
from reports.stop_words import TAGS, stop_words, tag_shares
from reports.summary import kind_title
from utils.files import write_json
from utils.formatting import percent
from utils.plotting import BLACK, GREY, legend_label, save_figure
from utils.run_record import run_folder

FORMATS = ("png", "pdf")

MAX_PANELS = 6


def caption(row: Row) -> str:
    """Names a row of partial detection with its θ and k."""
    return legend_label(f"{row.name} (θ {row.points[0].theta:g}, k {row.points[0].k})")


def draw_stops(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws where the harmful responses were stopped, beside the paper's bars."""
    figure, grid = panels(len(rows), 4.2 if len(rows) > 1 else 6.4, 3.5)
    for axes, row in zip(grid, rows, strict=True):
        outcome, title = row.outcomes[0], caption(row)
        values = point_metrics(outcome)
        draw_stop_positions(
            axes,
            stop_histogram(outcome),
            title,
            values["harmful_recall"],
            values["mean_fraction_seen"],
            looks[row.name]["color"],
        )
        if len(rows) > 1:  # the legend tells colours, and those of many methods repeat
            axes.set_title(f"{textwrap.fill(title, 40)}\n{axes.get_title()}", fontsize=10)
        if not axes.get_subplotspec().is_first_col():
            axes.set_ylabel("")
    legend_below(figure)
    return figure


def draw_macro_f1(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws macro F1 over k, a line a θ, a panel a method. Colours are of θ here."""
    figure, grid = panels(len(rows), 3.4 if len(rows) > 1 else 6.4, 3.0)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(THETAS)))
    for axes, row in zip(grid, rows, strict=True):
        test, point = row.runs[0].test, row.points[0]
        table = 100 * macro_f1_table(test.token_probs, test.label, THETAS, MAX_K)
        for theta, values, shade, line in zip(THETAS, table, shades, LINES, strict=True):
            axes.plot(
                np.arange(1, MAX_K + 1), values, color=shade, linestyle=line, label=f"θ {theta}"
            )
        axes.plot(
            point.k,
            table[THETAS.index(point.theta), point.k - 1],
            "o",
            color=BLACK,
            markerfacecolor="none",
            markersize=9,
            markeredgewidth=1.5,
            label="chosen on validation",
        )
        axes.set_title(
            f"{textwrap.fill(row.name, 40)}\nchosen: θ {point.theta:g}, k {point.k}",
            fontsize=10,
        )
        axes.set_xlabel("k, tokens")
        axes.set_xticks([1, *range(10, MAX_K + 1, 10)])
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("macro F1, %")
    legend_below(figure)
    return figure


def draw_stopped_over_seen(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws which share of the harmful responses is stopped by when, a line a method."""
    figure, (axes,) = panels(1, 6.4, 3.6)
    for row in rows:
        x, share = stopped_over_seen(row.outcomes[0])
        axes.step(
            100 * x,
            100 * share,
            where="post",
            **looks[row.name],
            markevery=[-1],
            clip_on=False,
            label=f"{caption(row)}: {percent(share[-1], 0)} % in the end",
        )
    axes.set_xlabel("share of the response that is out, %")
    axes.set_ylabel("harmful responses stopped so far, %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    legend_below(figure)
    return figure


def draw_trade_off(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws recall over false alarms as θ moves: partial detection (at its k) beside full."""
    kinds = [(kind, [row for row in rows if row.kind == kind]) for kind in ("partial", "full")]
    kinds = [(kind, same) for kind, same in kinds if same]
    figure, grid = panels(len(kinds), 4.0 if len(kinds) > 1 else 6.4, 3.6)
    benign = int((rows[0].outcomes[0].label == 0).sum())
    for axes, (kind, same) in zip(grid, kinds, strict=True):
        for row in same:
            look, outcome = looks[row.name], row.outcomes[0]
            alarms, recall = trade_off(outcome.score, outcome.label)
            axes.step(
                100 * alarms,
                100 * recall,
                where="post",
                **look,
                markevery=[],
                label=legend_label(row.name),
            )
            chosen = point_metrics(outcome)
            axes.plot(
                100 * chosen["false_alarm_rate"],
                100 * chosen["harmful_recall"],
                look["marker"],
                color=look["color"],
                markeredgecolor="white",
                markersize=9,
                clip_on=False,
                zorder=3,
            )
        near_zero_axis(axes, 100 / benign, 100)
        axes.set_ylim(0, 100)
        axes.set_title(kind_title(kind, None), fontsize=10)
        axes.set_xlabel("false alarms, % of benign responses")
    grid[0].set_ylabel("harmful responses found, %")
    grid[-1].plot([], [], "o", color=GREY, markersize=9, label="at the θ chosen on validation")
    legend_below(figure)
    return figure


def draw_leaked(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws how many harmful tokens are out before the stop, a line a method."""
    figure, (axes,) = panels(1, 6.4, 3.6)
    whole = [row.runs[0].test.partial(np.inf, 1) for row in rows]  # what nobody stops
    most = max(outcome.leaked.max() for outcome in whole)

    def draw(outcome: Outcome, label: str, **look: object) -> None:
        tokens, share = leaked_tokens(outcome)
        mean = point_metrics(outcome)["leaked_harmful_tokens"]
        axes.step(
            np.append(tokens, most),
            100 * np.append(share, 1),
            where="post",
            markevery=[np.searchsorted(share, 0.5)],
            clip_on=False,
            label=f"{label}: mean {mean:.1f}",
            **look,
        )

    for row in rows:
        draw(row.outcomes[0], caption(row), **looks[row.name])
    draw(whole[0], "no stop", color=GREY, linewidth=1)  # the first row's tokens
    axes.plot([], [], "o", color=GREY, label="median")
    near_zero_axis(axes, 1, max(most, 2))
    axes.set_xlabel("harmful tokens out before the stop")
    axes.set_ylabel("harmful responses that\nleak no more than that, %")
    axes.set_ylim(0, 100)
    legend_below(figure)
    return figure


def draw_stop_words(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws the parts of speech at the stop beside those before it, a panel a method.

    White space is no word; responses stopped there are counted in the title and left out.
    """
    language = load_language()  # whole: without the parser, 1 % of the parts of speech differ

    def docs(texts: list[str]) -> Iterable[Doc]:
        return tqdm(language.pipe(texts), "stop words", len(texts), unit="response")

    figure, grid = panels(len(rows), 4.2 if len(rows) > 1 else 6.4, 6.0)
    places = np.arange(len(TAGS))
    for axes, row in zip(grid, rows, strict=True):
        found = stop_words(row.runs[0].test, row.outcomes[0], docs)
        for tags, offset, title, look in (
            (found.at, -0.2, "stopped at", {"color": looks[row.name]["color"]}),
            (found.before, 0.2, "before", {"facecolor": "none", "edgecolor": GREY, "hatch": "///"}),
        ):
            shares = 100 * tag_shares(tags)
            notional = sum(
                share for tag, share in zip(TAGS, shares, strict=True) if tag in NOTIONAL_POS
            )
            label = (
                f"{legend_label(row.name)}, {title}: {len(tags):,} words, {notional:.1f} % notional"
            )
            bars = axes.barh(places + offset, shares, 0.38, label=label, **look)
            axes.bar_label(bars, fmt="{:.1f}", fontsize=7, padding=2)
        left_out = f"\n({found.wordless} more at white space)" if found.wordless else ""
        axes.set_title(
            f"{textwrap.fill(caption(row), 40)},\nharmful responses that it stops{left_out}",
            fontsize=10,
        )
        axes.set_xlabel("words, %")
        axes.margins(x=0.1)
    grid[0].set_yticks(places, TAGS.values())
    grid[0].invert_yaxis()
    legend_below(figure)
    return figure


def draw_all(rows: Sequence[Row], folder: Path) -> list[str]:
    """Writes each figure that can be drawn, as PNG and PDF.

    Args:
        rows: One or more of one section; the figures show the first run of each.
        folder: Where to.

    Returns:
        A line for each figure, or panel of one, that is left out.
    """
    label = rows[0].outcomes[0].label
    partial = [row for row in rows if row.kind == "partial"]
    stopping = [
        row
        for row in partial
        if row.runs[0].row == "scm" and (row.outcomes[0].flagged & (label == 1)).any()
    ]
    harmful = None if (label == 1).any() else "the test split has no harmful response"
    benign = None if (label == 0).any() else "the test split has no benign response"
    partly = None if partial else "no method has partial detection"
    stops = None if stopping else "there is no SCM that stops a harmful response"
    plan = (  # name, what it shows, how many at the most, what stands against it
        ("stop_positions", draw_stops, stopping, MAX_PANELS, stops),
        ("macro_f1_over_k", draw_macro_f1, partial, MAX_PANELS, partly or harmful or benign),
        ("stopped_over_seen", draw_stopped_over_seen, partial, None, partly or harmful),
        ("trade_off", draw_trade_off, rows, None, harmful or benign),
        ("leaked", draw_leaked, partial, None, partly or harmful),
        ("stop_words", draw_stop_words, stopping, MAX_PANELS, stops),
    )
    notes, looks = [], looks_of(rows)
    for name, draw, shown, most, obstacle in plan:
        if obstacle:
            notes.append(f"{name}: left out, {obstacle}")
            continue
        save_figure(draw(shown[:most], looks), folder / name, FORMATS)
        if most:
            notes += [
                f"{name}: {row.name} left out, there are {most} panels" for row in shown[most:]
            ]
    return notes


def pick(sections: list[list[Row]]) -> tuple[list[Row], list[str]]:
    """Picks the section with most rows, then the first; returns a line for each run left out."""
    section, notes = max(sections, key=len), {}
    for rows in sections:
        for row in rows:
            first = row.runs[0].folder
            if rows is section:
                hidden, reason = row.runs[1:], f"figures show {first} of the same name"
            else:
                hidden, reason = row.runs, "it was tested on another split than the rest"
            notes |= {run.folder: f"{run.folder}: left out, {reason}" for run in hidden}
    return section, list(notes.values())


def drawn(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns what figures.json tells of the rows: each run with its operating points."""
    runs: dict[Path, dict[str, Any]] = {}
    for row in rows:
        run, point = row.runs[0], row.points[0]
        named = {"folder": str(run.folder), "row": run.row, "method": row.name}
        one = runs.setdefault(run.folder, {**named, "full": None, "partial": None})
        if row.kind in ("full", "partial"):
            one[row.kind] = {"theta": point.theta} | ({"k": point.k} if point.k else {})
    return list(runs.values())


def main(config: FigureConfig) -> None:
    """Draws what can be drawn and says what cannot.

    Raises:
        InputError: There is no test folder, or one cannot be read.
    """
    with run_folder(config) as folder:
        rows, notes = pick(sections_of(find_runs(Path(config.runs_dir))))
        notes += draw_all(rows, folder)
        write_json(folder / "figures.json", {"drawn": drawn(rows), "notes": notes})
        for note in notes:
            print(note)
        print(f"drawn: {', '.join(dict.fromkeys(row.name for row in rows))}")

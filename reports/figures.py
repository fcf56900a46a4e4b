"""Draws the figures of all tests in a folder: python -m reports figures RUNS_DIR

Each number comes from predictions.npz alone, by `reports.curves` and `reports.stop_words`; of an
aligned policy from values.npz, by `reports.alignment`.
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
from evaluation.decisions import MAX_K, THETAS, macro_f1_table
from evaluation.metrics import point_metrics, stop_histogram
from reports.alignment import read_rows
from reports.alignment_figure import draw_alignment, drawn_points
from reports.curves import leaked_tokens, stopped_over_seen, trade_off
from reports.drawing import (
    HATCHED,
    LINES,
    Looks,
    draw_stop_positions,
    legend_below,
    looks_of,
    near_zero_axis,
    panels,
)
from reports.options import FigureConfig
from reports.rows import Row, find_runs, sections_of
from reports.stop_words import TAGS, stop_words, tag_shares
from reports.summary import kind_title
from utils.files import write_json
from utils.plotting import BLACK, GREY, legend_label, save_figure
from utils.run_record import run_folder

FORMATS = ("png", "pdf")
MAX_PANELS = 6


def caption(row: Row) -> str:
    """Names a row of partial detection with its θ and k."""
    return legend_label(f"{row.name} (θ {row.points[0].theta:g}, k {row.points[0].k})")


def draw_stops(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws where the harmful responses were stopped, beside the paper's bars."""
    figure, grid = panels(len(rows), 4.2, 3.5)
    for axes, row in zip(grid, rows, strict=True):
        outcome, title = row.outcomes[0], caption(row)
        values, look = point_metrics(outcome), {"color": looks[row.name]["color"], "label": title}
        detected, seen = values["harmful_recall"], values["mean_fraction_seen"]
        draw_stop_positions(axes, stop_histogram(outcome), detected, seen, **look)
        if len(rows) > 1:  # the legend tells colours, and those of many methods repeat
            axes.set_title(f"{textwrap.fill(title, 40)}\n{axes.get_title()}", fontsize=10)
        if not axes.get_subplotspec().is_first_col():
            axes.set_ylabel("")
    return figure


def draw_macro_f1(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws macro F1 over k, a line a θ, a panel a method. Colours are of θ here."""
    figure, grid = panels(len(rows), 3.4, 3.0)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(THETAS)))
    for axes, row in zip(grid, rows, strict=True):
        test, point = row.runs[0].test, row.points[0]
        table = 100 * macro_f1_table(test.token_probs, test.label, THETAS, MAX_K)
        for theta, values, shade, line in zip(THETAS, table, shades, LINES, strict=True):
            axes.plot(range(1, MAX_K + 1), values, color=shade, linestyle=line, label=f"θ {theta}")
        axes.plot(
            point.k, table[THETAS.index(point.theta), point.k - 1], "o", color=BLACK, markersize=9,
            markerfacecolor="none", markeredgewidth=1.5, label="chosen on validation",
        )  # fmt: skip
        title = f"{textwrap.fill(row.name, 40)}\nchosen: θ {point.theta:g}, k {point.k}"
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="k, tokens", xticks=[1, *range(10, MAX_K + 1, 10)])
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("macro F1, %")
    return figure


def draw_stopped_over_seen(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws which share of the harmful responses is stopped by when, a line a method."""
    figure, (axes,) = panels(1, 6.4, 3.6)
    for row in rows:
        x, share = 100 * np.array(stopped_over_seen(row.outcomes[0]))
        label = f"{caption(row)}: {share[-1]:.0f} % in the end"
        look = {"where": "post", "markevery": [-1], "clip_on": False, **looks[row.name]}
        axes.step(x, share, label=label, **look)
    axes.set(xlabel="share of the response that is out, %", xlim=(0, 100))
    axes.set(ylabel="harmful responses stopped so far, %", ylim=(0, 100))
    return figure


def draw_trade_off(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws recall over false alarms as θ moves: partial detection (at its k) beside full."""
    kinds = [kind for kind in ("partial", "full") if any(row.kind == kind for row in rows)]
    figure, grid = panels(len(kinds), 4.0, 3.6)
    benign = int((rows[0].outcomes[0].label == 0).sum())
    for axes, kind in zip(grid, kinds, strict=True):
        for row in rows:
            if row.kind != kind:
                continue
            look, outcome = looks[row.name], row.outcomes[0]
            alarms, recall = trade_off(outcome.score, outcome.label)
            label = legend_label(row.name)
            axes.step(100 * alarms, 100 * recall, where="post", label=label, **look, markevery=[])
            chosen = point_metrics(outcome)
            axes.plot(
                100 * chosen["false_alarm_rate"], 100 * chosen["harmful_recall"], look["marker"],
                color=look["color"], markeredgecolor="white", markersize=9, clip_on=False, zorder=3,
            )  # fmt: skip
        near_zero_axis(axes, 100 / benign, 100)
        axes.set(ylim=(0, 100), xlabel="false alarms, % of benign responses")
        axes.set_title(kind_title(kind, None), fontsize=10)
    grid[0].set_ylabel("harmful responses found, %")
    grid[-1].plot([], [], "o", color=GREY, markersize=9, label="at the θ chosen on validation")
    return figure


def draw_leaked(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws how many harmful tokens are out before the stop, a line a method."""
    figure, (axes,) = panels(1, 6.4, 3.6)
    whole = [row.runs[0].test.partial(np.inf, 1) for row in rows]  # what nobody stops
    most = max(outcome.leaked.max() for outcome in whole)
    lines = [(row.outcomes[0], caption(row), looks[row.name]) for row in rows]
    lines.append((whole[0], "no stop", {"color": GREY, "linewidth": 1}))  # the first row's tokens
    for outcome, name, look in lines:
        tokens, share = leaked_tokens(outcome)
        label = f"{name}: mean {point_metrics(outcome)['leaked_harmful_tokens']:.1f}"
        axes.step(
            np.append(tokens, most), 100 * np.append(share, 1), where="post", label=label,
            markevery=[np.searchsorted(share, 0.5)], clip_on=False, **look,
        )  # fmt: skip
    axes.plot([], [], "o", color=GREY, label="median")
    near_zero_axis(axes, 1, max(most, 2))
    axes.set(xlabel="harmful tokens out before the stop", ylim=(0, 100))
    axes.set_ylabel("harmful responses that\nleak no more than that, %")
    return figure


def draw_stop_words(rows: Sequence[Row], looks: Looks) -> Figure:
    """Draws the parts of speech at the stop beside those before it, a panel a method.

    White space is no word; responses stopped there are counted in the title and left out.
    """
    language = load_language()  # whole: without the parser, 1 % of the parts of speech differ

    def docs(texts: list[str]) -> Iterable[Doc]:
        return tqdm(language.pipe(texts), "stop words", len(texts), unit="response")

    figure, grid = panels(len(rows), 4.2, 6.0)
    notional = [tag in NOTIONAL_POS for tag in TAGS]
    for axes, row in zip(grid, rows, strict=True):
        found = stop_words(row.runs[0].test, row.outcomes[0], docs)
        for tags, offset, title, look in (
            (found.at, -0.2, "stopped at", {"color": looks[row.name]["color"]}),
            (found.before, 0.2, "before", {**HATCHED, "edgecolor": GREY}),
        ):
            shares = 100 * tag_shares(tags)
            counted = f"{len(tags):,} words, {shares[notional].sum():.1f} % notional"
            label = f"{legend_label(row.name)}, {title}: {counted}"
            bars = axes.barh(np.arange(len(TAGS)) + offset, shares, 0.38, label=label, **look)
            axes.bar_label(bars, fmt="{:.1f}", fontsize=7, padding=2)
        left_out = f"\n({found.wordless} more at white space)" if found.wordless else ""
        title = f"{textwrap.fill(caption(row), 40)},\nharmful responses that it stops{left_out}"
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("words, %")
        axes.margins(x=0.1)
    grid[0].set_yticks(range(len(TAGS)), TAGS.values())
    grid[0].invert_yaxis()
    return figure


def draw_all(rows: Sequence[Row], folder: Path) -> list[str]:
    """Writes each figure that can be drawn, as PNG and PDF.

    Args:
        rows: One or more of one section; the figures show the first run of each.
        folder: Where to.

    Returns:
        A line for each figure, or panel of one, that is left out.
    """
    harmful, benign = (rows[0].outcomes[0].label == label for label in (1, 0))
    partial = [row for row in rows if row.kind == "partial"]
    scm = [row for row in partial if row.runs[0].row == "scm"]
    stopping = [row for row in scm if (row.outcomes[0].flagged & harmful).any()]
    no_harmful = "" if harmful.any() else "the test split has no harmful response"
    no_benign = "" if benign.any() else "the test split has no benign response"
    no_pair = no_harmful or no_benign
    no_partial = "" if partial else "no method has partial detection"
    no_stop = "" if stopping else "there is no SCM that stops a harmful response"
    plan = (  # name, what it shows, how many at the most, what stands against it
        ("stop_positions", draw_stops, stopping, MAX_PANELS, no_stop),
        ("macro_f1_over_k", draw_macro_f1, partial, MAX_PANELS, no_partial or no_pair),
        ("stopped_over_seen", draw_stopped_over_seen, partial, None, no_partial or no_harmful),
        ("trade_off", draw_trade_off, rows, None, no_pair),
        ("leaked", draw_leaked, partial, None, no_partial or no_harmful),
        ("stop_words", draw_stop_words, stopping, MAX_PANELS, no_stop),
    )
    notes, looks = [], looks_of(row.name for row in rows)
    for name, draw, shown, most, obstacle in plan:
        if obstacle:
            notes.append(f"{name}: left out, {obstacle}")
            continue
        figure = draw(shown[:most], looks)
        legend_below(figure)
        save_figure(figure, folder / name, FORMATS)
        hidden = shown[most:] if most else []
        notes += [f"{name}: {row.name} left out, there are {most} panels" for row in hidden]
    return notes


def pick(sections: list[list[Row]]) -> tuple[list[Row], list[str]]:
    """Picks the section with most rows, then the first; returns a line for each run left out."""
    section, notes = max(sections, key=len), {}
    for rows in sections:
        for row in rows:
            hidden, reason = row.runs, "it was tested on another split than the rest"
            if rows is section:
                first, *hidden = row.runs
                reason = f"figures show {first.folder} of the same name"
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
        runs_dir = Path(config.runs_dir)
        sections, policies = sections_of(find_runs(runs_dir)), read_rows(runs_dir)
        rows, notes = pick(sections) if sections else ([], [])
        notes += draw_all(rows, folder) if rows else []
        notes += draw_alignment(policies, folder, FORMATS) if policies else []
        content = {"drawn": drawn(rows), "alignment": drawn_points(policies), "notes": notes}
        write_json(folder / "figures.json", content)
        names = ", ".join(dict.fromkeys(row.name for row in rows))
        told = [f"drawn: {names}"] if rows else []
        told += [f"alignment: {'; '.join(row.name for row in policies)}"] if policies else []
        print(*notes, *told, sep="\n")

"""Draws the figures of all tests in a folder: python -m reports figures RUNS_DIR

Each number comes from predictions.npz alone, by `reports.curves` and `reports.stop_words`.
"""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from spacy.tokens import Doc
from tqdm import tqdm

from annotation.sentences import NOTIONAL_POS, load_language
from evaluation.decisions import MAX_K, THETAS, Outcome, macro_f1_table
from evaluation.metrics import point_metrics, stop_histogram
from evaluation.predictions import FILE, METRICS
from evaluation.runs import find_tests
from reports.curves import leaked_tokens, stopped_over_seen, trade_off
from reports.drawing import (
    LINES,
    Styles,
    draw_stop_positions,
    legend_below,
    near_zero_axis,
    panels,
    styles_of,
)
from reports.options import FigureConfig
from reports.rows import Method, comparable, full_detectors, load_method
from reports.stop_words import TAGS, stop_words, tag_shares
from utils.files import InputError, write_json
from utils.formatting import percent
from utils.plotting import BLACK, GREY, save_figure
from utils.run_record import run_folder

FORMATS = ("png", "pdf")

MAX_PANELS = 6


def setting(method: Method) -> str:
    """Names a method with its θ and k."""
    return f"{method.name} (θ {method.theta:g}, k {method.k})"


def draw_stops(methods: Sequence[Method], styles: Styles) -> Figure:
    """Draws where the harmful responses were stopped, beside the paper's bars."""
    figure, grid = panels(len(methods), 4.2 if len(methods) > 1 else 6.4, 3.5)
    for axes, method in zip(grid, methods, strict=True):
        values = point_metrics(method.partial)
        draw_stop_positions(
            axes,
            stop_histogram(method.partial),
            setting(method),
            values["harmful_recall"],
            values["mean_fraction_seen"],
            styles[method.name].line["color"],
        )
        if len(methods) > 1:  # the legend tells colours, and those of many methods repeat
            name = textwrap.fill(setting(method), 40)
            axes.set_title(f"{name}\n{axes.get_title()}", fontsize=10)
        if not axes.get_subplotspec().is_first_col():
            axes.set_ylabel("")
    legend_below(figure)
    return figure


def draw_macro_f1(methods: Sequence[Method], styles: Styles) -> Figure:
    """Draws macro F1 over k, a line a θ, a panel a method. Colours are of θ here."""
    figure, grid = panels(len(methods), 3.4 if len(methods) > 1 else 6.4, 3.0)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(THETAS)))
    for axes, method in zip(grid, methods, strict=True):
        table = 100 * macro_f1_table(method.test.token_probs, method.test.label, THETAS, MAX_K)
        for theta, values, shade, line in zip(THETAS, table, shades, LINES, strict=True):
            axes.plot(
                np.arange(1, MAX_K + 1), values, color=shade, linestyle=line, label=f"θ {theta}"
            )
        axes.plot(
            method.k,
            table[THETAS.index(method.theta), method.k - 1],
            "o",
            color=BLACK,
            markerfacecolor="none",
            markersize=9,
            markeredgewidth=1.5,
            label="chosen on validation",
        )
        axes.set_title(
            f"{textwrap.fill(method.name, 40)}\nchosen: θ {method.theta:g}, k {method.k}",
            fontsize=10,
        )
        axes.set_xlabel("k, tokens")
        axes.set_xticks([1, *range(10, MAX_K + 1, 10)])
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("macro F1, %")
    legend_below(figure)
    return figure


def draw_stopped_over_seen(methods: Sequence[Method], styles: Styles) -> Figure:
    """Draws which share of the harmful responses is stopped by when, a line a method."""
    figure, (axes,) = panels(1, 6.4, 3.6)
    for method in methods:
        x, share = stopped_over_seen(method.partial)
        axes.step(
            100 * x,
            100 * share,
            where="post",
            **styles[method.name].line,
            marker=styles[method.name].marker,
            markevery=[-1],
            clip_on=False,
            label=f"{setting(method)}: {percent(share[-1], 0)} % in the end",
        )
    axes.set_xlabel("share of the response that is out, %")
    axes.set_ylabel("harmful responses stopped so far, %")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    legend_below(figure)
    return figure


def draw_trade_off(methods: Sequence[Method], styles: Styles) -> Figure:
    """Draws recall over false alarms as θ moves: partial detection (at its k) beside full."""
    partial = [(method, method.partial) for method in methods if method.partial is not None]
    full = [(method, method.full) for method in full_detectors(methods)]
    kinds = [("partial detection", partial), ("full detection", full)]
    kinds = [(title, curves) for title, curves in kinds if curves]
    figure, grid = panels(len(kinds), 4.0 if len(kinds) > 1 else 6.4, 3.6)
    benign = int((methods[0].test.label == 0).sum())
    for axes, (title, curves) in zip(grid, kinds, strict=True):
        for method, outcome in curves:
            style = styles[method.name]
            alarms, recall = trade_off(outcome.score, outcome.label)
            axes.step(
                100 * alarms,
                100 * recall,
                where="post",
                **style.line,
                marker=style.marker,
                markevery=[],
                label=method.name,
            )
            chosen = point_metrics(outcome)
            axes.plot(
                100 * chosen["false_alarm_rate"],
                100 * chosen["harmful_recall"],
                style.marker,
                color=style.line["color"],
                markeredgecolor="white",
                markersize=9,
                clip_on=False,
                zorder=3,
            )
        near_zero_axis(axes, 100 / benign, 100)
        axes.set_ylim(0, 100)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("false alarms, % of benign responses")
    grid[0].set_ylabel("harmful responses found, %")
    grid[-1].plot([], [], "o", color=GREY, markersize=9, label="at the θ chosen on validation")
    legend_below(figure)
    return figure


def draw_leaked(methods: Sequence[Method], styles: Styles) -> Figure:
    """Draws how many harmful tokens are out before the stop, a line a method."""
    figure, (axes,) = panels(1, 6.4, 3.6)
    whole = [method.test.partial(np.inf, 1) for method in methods]  # what nobody stops
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

    for method in methods:
        style = styles[method.name]
        draw(method.partial, setting(method), marker=style.marker, **style.line)
    draw(whole[0], "no stop", color=GREY, linewidth=1)  # the first method's tokens
    axes.plot([], [], "o", color=GREY, label="median")
    near_zero_axis(axes, 1, max(most, 2))
    axes.set_xlabel("harmful tokens out before the stop")
    axes.set_ylabel("harmful responses that\nleak no more than that, %")
    axes.set_ylim(0, 100)
    legend_below(figure)
    return figure


def draw_stop_words(methods: Sequence[Method], styles: Styles) -> Figure:
    """Draws the parts of speech at the stop beside those before it, a panel a method.

    White space is no word; responses stopped there are counted in the title and left out.
    """
    language = load_language()  # whole: without the parser, 1 % of the parts of speech differ

    def docs(texts: list[str]) -> Iterable[Doc]:
        return tqdm(language.pipe(texts), "stop words", len(texts), unit="response")

    figure, grid = panels(len(methods), 4.2 if len(methods) > 1 else 6.4, 6.0)
    places = np.arange(len(TAGS))
    for axes, method in zip(grid, methods, strict=True):
        found = stop_words(method, docs)
        for tags, offset, title, look in (
            (found.at, -0.2, "stopped at", {"color": styles[method.name].line["color"]}),
            (found.before, 0.2, "before", {"facecolor": "none", "edgecolor": GREY, "hatch": "///"}),
        ):
            shares = 100 * tag_shares(tags)
            notional = sum(
                share for tag, share in zip(TAGS, shares, strict=True) if tag in NOTIONAL_POS
            )
            label = f"{method.name}, {title}: {len(tags):,} words, {notional:.1f} % notional"
            bars = axes.barh(places + offset, shares, 0.38, label=label, **look)
            axes.bar_label(bars, fmt="{:.1f}", fontsize=7, padding=2)
        left_out = f"\n({found.wordless} more at white space)" if found.wordless else ""
        axes.set_title(
            f"{textwrap.fill(setting(method), 40)},\nharmful responses that it stops{left_out}",
            fontsize=10,
        )
        axes.set_xlabel("words, %")
        axes.margins(x=0.1)
    grid[0].set_yticks(places, TAGS.values())
    grid[0].invert_yaxis()
    legend_below(figure)
    return figure


def draw_all(methods: Sequence[Method], folder: Path) -> list[str]:
    """Writes each figure that can be drawn, as PNG and PDF.

    Args:
        methods: One or more, tested on the same responses.
        folder: Where to.

    Returns:
        A line for each figure, or panel of one, that is left out.
    """
    label = methods[0].test.label
    partial = [method for method in methods if method.partial is not None]
    stopping = [
        method
        for method in partial
        if method.row == "scm" and (method.partial.flagged & (method.partial.label == 1)).any()
    ]
    harmful = None if (label == 1).any() else "the test split has no harmful response"
    benign = None if (label == 0).any() else "the test split has no benign response"
    partly = None if partial else "no method has partial detection"
    stops = None if stopping else "there is no SCM that stops a harmful response"
    plan = (  # name, what it shows, what stands against it
        ("stop_positions", draw_stops, stopping[:MAX_PANELS], stops),
        ("macro_f1_over_k", draw_macro_f1, partial[:MAX_PANELS], partly or harmful or benign),
        ("stopped_over_seen", draw_stopped_over_seen, partial, partly or harmful),
        ("trade_off", draw_trade_off, methods, harmful or benign),
        ("leaked", draw_leaked, partial, partly or harmful),
        ("stop_words", draw_stop_words, stopping[:MAX_PANELS], stops),
    )
    notes, styles = [], styles_of(methods)
    for name, draw, shown, obstacle in plan:
        if obstacle:
            notes.append(f"{name}: left out, {obstacle}")
        else:
            save_figure(draw(shown, styles), folder / name, FORMATS)
    for name, all_of_them in (
        ("stop_positions", stopping),
        ("stop_words", stopping),
        ("macro_f1_over_k", partial),
    ):
        for method in all_of_them[MAX_PANELS:]:
            notes.append(f"{name}: {method.name} left out, there are {MAX_PANELS} panels")
    return notes


def main(config: FigureConfig) -> None:
    """Draws what can be drawn and says what cannot.

    Raises:
        InputError: There is no test folder, or one cannot be read.
    """
    with run_folder(config) as folder:
        runs = Path(config.runs_dir)
        folders = find_tests(runs)
        if not folders:
            raise InputError(f"{runs}: holds no test folder ({METRICS} and {FILE})")
        methods, notes = comparable([load_method(folder) for folder in folders])
        notes += draw_all(methods, folder)
        drawn = [
            {
                "folder": str(method.folder),
                "row": method.row,
                "method": method.name,
                "full": {"theta": method.full_theta} if method.full else None,
                "partial": {"theta": method.theta, "k": method.k} if method.partial else None,
            }
            for method in methods
        ]
        write_json(folder / "figures.json", {"drawn": drawn, "notes": notes})
        for note in notes:
            print(note)
        print(f"drawn: {', '.join(dict.fromkeys(method.name for method in methods))}")

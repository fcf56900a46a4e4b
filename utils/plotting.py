"""Colours of every figure, and how one is saved."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

matplotlib.use("Agg")  # no screen

# Okabe and Ito's colours, distinct for every kind of colour vision
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"
VERMILION, GREEN, PURPLE, SKY, BLACK = "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000"
METHOD_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, BLACK, GREY)  # orange is the paper's


def legend_label(name: str) -> str:
    """Returns a name as a legend shows it; matplotlib hides those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _show_as_written(figure: Figure) -> None:
    """Keeps matplotlib from typesetting names, and spells out the letters that its font lacks."""
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    texts = figure.findobj(Text)
    letters = set("".join(text.get_text() for text in texts)) - {"\n"}
    lacking = sorted(letter for letter in letters if not font.get_char_index(ord(letter)))
    spelled = {ord(letter): letter.encode("unicode_escape").decode() for letter in lacking}
    for text in texts:
        text.set_parse_math(False)
        text.set_text(text.get_text().translate(spelled))
    if lacking:
        _warn_once(
            f"figures show {' '.join(spelled.values())}: {font.family_name} has no such letters"
        )


@functools.cache
def _warn_once(message: str) -> None:
    print(message, file=sys.stderr)


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = ("png",)) -> None:
    """Writes a figure as `path` with the suffix of each format, 150 dots per inch; closes it."""
    _show_as_written(figure)
    with plt.rc_context({"pdf.fonttype": 42}):  # embeds TrueType, as publishers ask
        for name in formats:
            figure.savefig(path.with_suffix(f".{name}"), dpi=150)
    plt.close(figure)

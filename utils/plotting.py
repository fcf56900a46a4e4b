"""Colours of every figure, and how one is saved."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

matplotlib.use("Agg")  # no screen

# Okabe and Ito's colours, distinct for every kind of colour vision
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"
VERMILION, GREEN, PURPLE, SKY, BLACK = "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000"


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

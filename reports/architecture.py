"""Draws SCM.png, the architecture figure: python -m reports.architecture [SCM.png]"""

import sys
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from utils.plotting import BLUE, GREY, ORANGE

INK, PALE, WHITE = "#222222", "#F2F2F2", "#FFFFFF"
PROMPT = ["prompt", "…"]
RESPONSE = ["$x_1$", "$x_2$", "$x_3$", "$x_4$", "$x_5$", "$x_6$"]
SCORES = [0.02, 0.08, 0.91, 0.34, 0.88, None]  # the stream stops at the second hit (k = 2)
WIDTH = 0.95  # of a token's box
CENTRED = {"ha": "center", "va": "center"}


def box(axes, x: float, y: float, width: float, height: float, text: str, **style) -> None:
    """Draws a rounded box with centred text; x, y is its lower left corner."""
    options = {"facecolor": WHITE, "edgecolor": INK, "linewidth": 1.1} | style
    size, color = options.pop("size", 10), options.pop("color", INK)
    shape = f"round,pad=0,rounding_size={min(0.12, height / 3)}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, **options))
    axes.text(x + width / 2, y + height / 2, text, size=size, color=color, **CENTRED)


def arrow(axes, start: tuple, end: tuple, color: str = INK, **style) -> None:
    """Draws an arrow between two points."""
    options = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.0} | style
    axes.add_patch(FancyArrowPatch(start, end, color=color, shrinkA=0, shrinkB=0, **options))


@plt.rc_context({"text.color": INK})
def draw(path: Path) -> None:
    """Draws the figure and writes it as a PNG."""
    figure, axes = plt.subplots(figsize=(13.6, 7.3), dpi=120)
    axes.set(xlim=(0, 14.2), ylim=(-0.25, 7.65))
    axes.axis("off")
    places = [0.9 + 1.15 * index for index in range(len(PROMPT) + len(RESPONSE))]
    left, end = places[len(PROMPT)], places[-1] + WIDTH  # of the response

    for x, text in zip(places, PROMPT + RESPONSE, strict=True):
        pending = text == RESPONSE[-1]  # not shown to the user any more
        color = GREY if pending else INK
        box(
            axes, x, 0.35, WIDTH, 0.55, text, color=color,
            facecolor=PALE if text in PROMPT else WHITE,
            edgecolor=GREY if text in PROMPT else color,
            linestyle="--" if pending else "-",
        )  # fmt: skip
        arrow(axes, (x + WIDTH / 2, 0.9), (x + WIDTH / 2, 1.4), color)
    axes.text(left, 0.0, "response, token by token →", size=9, va="center")
    box(axes, places[0], 1.4, end - places[0], 0.95, "Qwen2 backbone, causal", size=12)

    axes.text(2.9, 3.2, "token scorer $p_i$", ha="right", va="center", size=10, color=BLUE)
    for x, score in zip(places[len(PROMPT) :], SCORES, strict=True):
        seen, hit = score is not None, score is not None and score >= 0.8
        color = BLUE if seen else GREY
        arrow(axes, (x + WIDTH / 2, 2.35), (x + WIDTH / 2, 2.9), color)
        box(
            axes, x, 2.9, WIDTH, 0.6, f"{score:.2f}" if seen else "held back",
            facecolor=BLUE if hit else WHITE,
            edgecolor=color,
            color=WHITE if hit else color,
            size=10 if seen else 8,
            linestyle="-" if seen else "--",
        )  # fmt: skip
        if seen:
            arrow(axes, (x + WIDTH / 2, 3.5), (x + WIDTH / 2, 4.1), BLUE)
    rule = r"delay-k: stop when k tokens have $p_i \geq \theta$   (here k = 2)"
    box(axes, left, 4.1, places[-1] - left, 0.75, rule, edgecolor=BLUE, size=9.5)
    stop = places[-2] + WIDTH
    axes.plot([stop + 0.1] * 2, [0.2, 4.08], color=ORANGE, linewidth=2.2)
    axes.text(stop + 0.22, 3.75, "stop", size=11, color=ORANGE, weight="bold", va="center")
    heading = {"size": 10.5, "weight": "bold"}
    axes.text(left, 5.15, "while streaming: partial detection", color=BLUE, **heading)

    column, middle = 10.55, 12.25  # of the boxes on the right
    arrow(axes, (end, 1.9), (column, 1.9))
    axes.text((end + column) / 2, 2.02, "last", ha="center", size=8)
    scorer = "holistic scorer: $c_{hol}$\non the last response token"
    box(axes, column, 1.4, 3.4, 0.95, scorer, size=9.5)
    axes.text(column, 0.9, "when complete: full detection", **heading)
    axes.text(column, 6.95, "training", size=11, weight="bold")
    loss = r"$L = \alpha L_{tok} + (1-\alpha) L_{hol} + \beta L_{logic}$"
    box(axes, column, 5.9, 3.4, 0.75, loss, facecolor=PALE)
    box(axes, column, 4.1, 3.4, 1.2, "", edgecolor=ORANGE)
    axes.text(middle, 4.93, "response harmful ⇒ some token harmful", size=8.5, **CENTRED)
    logic = r"$L_{logic}=-\log(1-c_{hol}+c_{hol}\,\max_i p_i)$"
    axes.text(middle, 4.45, logic, size=9.5, **CENTRED)
    arrow(axes, (middle, 5.3), (middle, 5.9), ORANGE)
    arrow(axes, (middle, 2.35), (middle, 4.1))
    arrow(axes, (end, 3.2), (column + 0.6, 4.1), BLUE, connectionstyle="angle,angleA=0,angleB=90")
    axes.text(places[0], 7.1, "SCM, the streaming content monitor", size=14, weight="bold")
    claim = "one causal pass judges every token as it arrives and the response as a whole"
    axes.text(places[0], 6.55, claim, size=10)
    figure.savefig(path, bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "SCM.png"))

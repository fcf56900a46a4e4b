"""Numbers, names and tables as text."""

import math
import unicodedata

DIRECTIONS = set("LRE RLE LRO RLO PDF LRI RLI FSI PDI".split())  # they reorder what follows


def printable(text: str, keep: str = "") -> str:
    """Spells out what steers a terminal, ends a line or reorders text, except what to keep."""

    def steers(character: str) -> bool:
        control = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        return control or unicodedata.bidirectional(character) in DIRECTIONS

    return "".join(
        one.encode("unicode_escape").decode() if steers(one) and one not in keep else one
        for one in text
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a share as percent; undefined ones, None or NaN, as a dash."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def interval(metric: dict[str, float | None], digits: int = 1) -> str:
    """Formats a metric with its 95 % interval, in percent."""
    low, high = percent(metric["low"], digits), percent(metric["high"], digits)
    return f"{percent(metric['value'], digits)} [{low}, {high}]"


def threshold(theta: float | None) -> str:
    """Formats a threshold; one that nothing reaches as ∞."""
    return "∞" if theta is None else f"{theta:.4g}"


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Formats cells by their columns, which are the first row's; what is left out is empty."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in rows)]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)

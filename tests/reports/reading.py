"""Makes the tables of a folder and finds lines in them."""

import io
from pathlib import Path

import pandas as pd

from reports.options import TablesConfig
from reports.tables import main


def tables(runs: Path, **options) -> dict[str, pd.DataFrame | str]:
    """Makes the tables; CSV files come back as data frames, empty cells as NaN."""
    out = runs.parent / f"{runs.name}-tables"
    main(TablesConfig(str(runs), str(out), overwrite=out.exists(), **options))
    texts = {path.name: path.read_text() for path in out.iterdir()}
    assert set(texts) == {"table.md", "table.tex", "table.csv", "paired.csv", "lengths.csv"}
    return {
        name: pd.read_csv(io.StringIO(text)) if name.endswith(".csv") else text
        for name, text in texts.items()
    }


def line(frame: pd.DataFrame, **values) -> pd.Series:
    """The only line with these values."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def markdown_row(text: str, *start: str) -> list[str]:
    """The cells of the first line of a Markdown table that begins with these cells."""
    found = [one for one in text.splitlines() if one.startswith(f"| {' | '.join(start)} |")]
    return [cell.strip() for cell in found[0].strip("|").split("|")]

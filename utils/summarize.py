"""Builds result tables from run folders: python -m utils.summarize --runs DIR [DIR …]"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from utils.cli import run_command
from utils.files import InputError, read_json
from utils.report import ROWS, interval, percent
from utils.run_record import read_record


@dataclass
class SummaryConfig:
    """Options of the summary."""

    runs: list[str] = field(metadata={"help": "Folders that tests wrote, one row a kind."})
    format: Literal["markdown", "csv"] = field(
        default="markdown", metadata={"help": "How the table is printed."}
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Returns one row for each kind of detection a test folder reports, in percent.

    Raises:
        InputError: The folder holds no metrics.json or no run.json.
    """
    result, record = read_json(folder / "metrics.json"), read_record(folder)
    if record is None:
        raise InputError(f"{folder}: holds no run.json")
    git = record["git"] or {"commit": "unknown", "dirty": False}
    rows = []
    for kind in ROWS:
        if kind not in result:
            continue
        values = result[kind]["test"]
        rows.append(
            {
                "model": result["method"],
                "detection": ROWS[kind],
                "θ, k": f"{result[kind]['theta']}, {result[kind].get('k', '–')}",
                "macro F1": interval(values["macro_f1"]),
                "false alarms": interval(values["false_alarm_rate"]),
                "seen": percent(values["mean_fraction_seen"]["value"]),
                "AUROC": percent(values["auroc"]["value"]),
                "commit": git["commit"][:7] + (" (dirty)" if git["dirty"] else ""),
                "device": record["device"],
                "time": f"{record['seconds']:.0f} s",
            }
        )
    return rows


def main(config: SummaryConfig) -> None:
    """Prints the table."""
    table = pd.DataFrame([row for folder in config.runs for row in rows_of(Path(folder))])
    if config.format == "csv":
        print(table.to_csv(index=False), end="")
        return
    print("| " + " | ".join(table.columns) + " |")
    print("|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    run_command(SummaryConfig, main)

"""Result tables as Markdown, LaTeX (booktabs) and CSV.

The lines of a table are dicts, the columns of its CSV file: shares from 0 to 1, unrounded, NaN
where undefined, a tuple where runs differ. Markdown and LaTeX show them rounded, in percent.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from reports.summary import ROWS, kind_title
from utils.formatting import interval, markdown_table, percent, threshold

BY_CLASS = {
    f"{label} {short}": f"{label}_{part}"
    for label in ("benign", "harmful")
    for short, part in (("P", "precision"), ("R", "recall"), ("F1", "f1"))
}
PROVENANCE = ("commit", "device", "training", "test")
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho varsigma sigma"
    " tau upsilon phi chi psi omega"
).split()
LATEX = str.maketrans({  # what LaTeX reads as a command, or pdflatex has no letter for
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **dict(zip("αβγδεζηθικλμνξπρςστυφχψω", (rf"$\{name}$" for name in GREEK), strict=True)),
    "∞": r"$\infty$", "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
    "→": r"$\to$", "–": "--", "—": "---", "…": r"\ldots{}", "’": "'", "“": "``", "”": "''",
    "\N{NO-BREAK SPACE}": "~",
})  # fmt: skip
NOTES = """\
Percent, on the test split. In brackets the 95 % bootstrap interval, prompts resampled; several runs
show their mean ± standard deviation over training seeds, and the mean's interval. θ and k were
chosen on validation unless the row says otherwise. "Seen": share of a detected harmful response
that was out when it was stopped.

Delay-k detection favours long responses. "AUROC at equal length" is taken within each quartile of
response length and averaged, a quartile weighing as many as it has pairs of a harmful and a benign
response: what length explains of the AUROC is missing in it. Compare the row of length alone too.

Rows "every N-th prefix" were scored at these alone, a coarse sweep.

The paper's values are of its own backbone on FineHarm (arXiv 2506.09996, Table 2) and no comparison
unless ours is of the same. It chose SCM's θ and k on the test split; its value stands beside both
protocols."""


@dataclass
class Section:
    """The tables of one test split."""

    data: str  # name of the data folder
    responses: int  # in the test split
    harmful: int  # of those
    results: list[dict[str, Any]]  # lines of table.csv
    paired: list[dict[str, Any]]  # of paired.csv; the first compares the first row with itself
    lengths: list[dict[str, Any]]  # of lengths.csv

    @property
    def title(self) -> str:
        return f"{self.data}: {self.responses} test responses ({self.harmful} harmful)"


def as_csv(sections: list[Section], table: str) -> str:
    """Returns all sections' lines of one table, "results", "paired" or "lengths".

    The first four columns tell the section.
    """
    lines = []
    for number, section in enumerate(sections, start=1):
        about = {"section": number, "data": section.data}
        about |= {"test_responses": section.responses, "test_harmful": section.harmful}
        lines += [about | line for line in getattr(section, table)]
    return csv_text(lines)


def csv_text(lines: list[dict[str, Any]], heads: Sequence[str] | None = None) -> str:
    """Returns lines as a CSV file, their tuples joined; heads are the lines' own if not given."""

    def plain(value: Any) -> Any:
        return "; ".join(map(str, value)) if isinstance(value, tuple) else value

    return pd.DataFrame(lines, columns=heads).map(plain).to_csv(index=False)


def _spread(line: dict[str, Any], metric: str) -> str:
    """Formats a metric with its interval and, of several runs, its deviation over them."""
    metrics = {part: line[f"{metric}_{part}"] for part in ("value", "low", "high")}
    if math.isnan(metrics["value"]):
        return percent(None)
    value, bounds = interval(metrics).split(maxsplit=1)
    deviation = f" ± {percent(line[f'{metric}_std'])}" if line.get("runs", 1) > 1 else ""
    return f"{value}{deviation} {bounds}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _cells(line: dict[str, Any]) -> dict[str, str]:
    """Formats a line of the result table by its columns; what is left out is empty."""
    detection = kind_title(line["detection"], line.get("target_false_alarm"))
    cells = {"method": line["method"], "detection": detection}
    paper = {"paper's macro F1": percent(line.get("paper_macro_f1"), 2)}
    if not line["runs"]:
        return {**cells, "macro F1": "not run", **paper}
    if line["runs"] > 1:
        cells["method"] += f" ({line['runs']} runs)"
    thetas = [threshold(None if math.isinf(theta) else theta) for theta in line["theta"]]
    if line["k"]:
        thetas = [f"{theta}, {k}" for theta, k in zip(thetas, line["k"], strict=True)]
    commits = {"trained": line["train_commit"], "tested": line["test_commit"]}
    return {
        **cells,
        "backbone": PurePath(line["backbone"]).name or "–",
        "θ, k": "; ".join(dict.fromkeys(thetas)),
        "macro F1": _spread(line, "macro_f1"),
        "false alarms": _spread(line, "false_alarm_rate"),
        "seen": percent(line["mean_fraction_seen_value"]),
        "AUROC": percent(line["auroc_value"]),
        "AUROC at equal length": percent(line["auroc_at_equal_length_value"]),
        **paper,
        "commit": "; ".join(f"{what} {', '.join(one)}" for what, one in commits.items() if one),
        "device": ", ".join(line["device"]),
        "training": _duration(line["train_seconds"]),
        "test": _duration(line["test_seconds"]),
    }


def _class_rows(line: dict[str, Any]) -> list[dict[str, str]]:
    """Formats a line of the result table by the paper's columns: our values, then the paper's."""
    columns = {**BY_CLASS, "macro F1": "macro_f1"}
    cells, rows = _cells(line), []
    if line["runs"]:
        ours = {head: _spread(line, metric) for head, metric in columns.items()}
        rows.append({"method": cells["method"], "detection": cells["detection"], **ours})
    if "paper_model" in line:
        name = f"paper: {line['paper_model']}"
        paper = {head: percent(line[f"paper_{metric}"], 2) for head, metric in columns.items()}
        rows.append({"method": name, "detection": cells["detection"], **paper})
    return rows


def _paired_cells(line: dict[str, Any]) -> dict[str, str]:
    return {
        "method": line["method"],
        "detection": ROWS[line["detection"]],
        "difference in macro F1": _spread(line, "macro_f1_difference"),
        "p": "–" if math.isnan(line["p"]) else f"{line['p']:.4f}",
    }


def _length_cells(line: dict[str, Any]) -> dict[str, str]:
    return {
        "method": line["method"],
        "detection": ROWS[line["detection"]],
        "tokens": f"{line['from_tokens']}–{line['to_tokens']}",
        "responses": str(line["responses"]),
        "harmful": percent(line["harmful_share"]),
        "macro F1": percent(line["macro_f1"]),
        "false alarms": percent(line["false_alarm_rate"]),
        "harmful recall": percent(line["harmful_recall"]),
    }


def as_markdown(sections: list[Section]) -> str:
    """Returns all tables; of the paired tests only those against each section's first row."""
    blocks = ["# Results", NOTES]
    for section in sections:
        itself, *paired = section.paired
        first = itself["method"], itself["detection"]
        against = [
            _paired_cells(line)
            for line in paired
            if (line["against"], line["against_detection"]) == first
        ]
        blocks += [
            f"## {section.title}",
            markdown_table([_cells(line) for line in section.results]),
            "### By class",
            "Precision, recall and F1 with their intervals; the paper's line below ours.",
            markdown_table([row for line in section.results for row in _class_rows(line)]),
        ]
        if against:
            blocks += [
                f"### Against {first[0]}, {ROWS[first[1]]}: paired bootstrap",
                f"Percentage points; the same {itself['resamples']} resamples of the prompts for"
                " both rows; p is two-sided. Several runs count with their mean. Every pair of rows"
                " is in paired.csv.",
                markdown_table(against),
            ]
        blocks += [
            "### By response length",
            "Quartiles of the test responses' tokens.",
            markdown_table([_length_cells(line) for line in section.lengths]),
        ]
    return "\n\n".join(blocks) + "\n"


def as_latex(sections: list[Section]) -> str:
    """Returns two booktabs tables of each section: the results, and P, R and F1 of both classes.

    Commit, device and times are comments at a line's end of the first; in the second the paper's
    line stands below ours.
    """
    tables = [r"% needs \usepackage{booktabs,graphicx}"]
    for section in sections:
        tables += [_latex_results(section), _latex_by_class(section)]
    return "\n\n".join(tables) + "\n"


def _latex_results(section: Section) -> str:
    rows = [_cells(line) for line in section.results]
    heads = [head for head in rows[0] if head not in PROVENANCE]
    lines = []
    for cells in rows:
        told = ", ".join(f"{name} {cells[name]}" for name in PROVENANCE if name in cells)
        line = _latex_line(cells.get(head, "") for head in heads)
        lines.append(f"{line} % {told}" if told else line)
    texts = heads.index("macro F1")
    columns = "l" * texts + "r" * (len(heads) - texts)
    return _latex_table(section.title, columns, [_latex_line(heads)], lines)


def _latex_by_class(section: Section) -> str:
    rows = [row for line in section.results for row in _class_rows(line)]
    heads = [
        r" & & \multicolumn{3}{c}{benign} & \multicolumn{3}{c}{harmful} & \\",
        r"\cmidrule(lr){3-5} \cmidrule(lr){6-8}",
        _latex_line(head.split()[-1] if head in BY_CLASS else head for head in rows[0]),
    ]
    lines = [_latex_line(row.values()) for row in rows]
    return _latex_table(f"{section.title}, by class", "llrrrrrrr", heads, lines)


def _latex_table(title: str, columns: str, heads: list[str], lines: list[str]) -> str:
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{title.translate(LATEX)}. Percent, 95\,\% bootstrap intervals.}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *heads,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
        ]
    )


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"

"""The output folders of tests, as rows to compare.

A row is a method by one kind of detection. Runs that differ by their training's seed alone are one
row. Rows of one test split are a section: only they can be compared.
"""

from dataclasses import dataclass
from pathlib import Path

from evaluation.decisions import Outcome
from evaluation.protocol import OperatingPoint
from evaluation.runs import Commit, Run, find_tests, read_run, split_key
from utils.files import InputError

# Order of the rows. An ablation is SCM under another name; guards are all keys "guard-…".
ORDER = (
    "scm", "qwen-full", "qwen-partial", "modernbert-full", "modernbert-partial", "ablation",
    "scm-holistic", "classifier", "guard", "tfidf", "length",
)  # fmt: skip
KINDS = ("partial", "partial_paper_protocol", "partial_conformal", "full")

# Row key and the method's own name → the paper's name and kind of detection. A run under another
# name is a variant, of which the paper tells nothing; a guard is the paper's if --name says so.
# Nothing here runs those behind an API.
PAPER_ROWS = {
    ("scm", "SCM"): ("SCM-{size}", "partial"),
    ("qwen-full", "Qwen"): ("Qwen2.5-{size}", "full"),
    ("qwen-partial", "Qwen"): ("Qwen2.5-{size}", "partial"),
    ("modernbert-full", "ModernBERT"): ("ModernBERT", "full"),
    ("modernbert-partial", "ModernBERT"): ("ModernBERT", "partial"),
    ("guard-classifier", "HateBERT"): ("HateBERT", "full"),
    ("guard-classifier", "ToxDectRoBERTa"): ("ToxDectRoBERTa", "full"),
    ("guard-generative", "LlamaGuard3-8B"): ("LlamaGuard3-8B", "full"),
    ("api", "Google Perspective"): ("Google Perspective", "full"),
    ("api", "OpenAI Moderation"): ("OpenAI Moderation", "full"),
}


@dataclass
class Row:
    """A method by one kind of detection."""

    name: str  # the method's
    kind: str  # one of `KINDS`
    target: float | None  # share of false alarms that θ was calibrated for; None where it was not
    runs: list[Run]  # one for each seed of the training
    points: list[OperatingPoint]  # of each run
    outcomes: list[Outcome]  # of each run on the test split


def rank(run: Run) -> tuple:
    """Sorts runs into the tables' order: the paper's rows, then variants, each by name."""
    is_variant = (run.row, run.method) not in PAPER_ROWS
    key = "guard" if run.row.startswith("guard-") else run.row
    if key == "scm" and is_variant:
        key = "ablation"
    place = ORDER.index(key) if key in ORDER else len(ORDER)
    return place, is_variant, run.display_name, run.row, str(run.folder)


def commit_name(git: Commit | None) -> str:
    """Shortens a commit; "unknown" where there was no history."""
    if git is None or not git.commit:
        return "unknown"
    return git.commit[:7] + (" (dirty)" if git.dirty else "")


def find_runs(runs_dir: Path) -> list[Run]:
    """Reads all test folders in and below a folder, in the tables' order.

    Raises:
        InputError: One cannot be read.
    """
    return sorted((read_run(folder) for folder in find_tests(runs_dir)), key=rank)


def _refuse_mixture(runs: list[Run]) -> None:
    """Raises InputError unless runs of one name differ by the training's seed alone."""

    def origin(run: Run) -> tuple:
        model = run.record.model
        backbone = {**(model and model.backbone or {}), "folder": None}
        return run.record.data.meta_sha256, model and model.data_sha256, backbone

    seeds: dict[int | None, Run] = {}
    for run in runs:
        if run.seed in seeds:
            other, fault = seeds[run.seed], "and of the same seed"
        elif origin(run) != origin(runs[0]):
            other, fault = runs[0], "but not of the same data and backbone"
        else:
            seeds[run.seed] = run
            continue
        raise InputError(
            f"{other.folder} and {run.folder}: both are called '{run.display_name}' {fault};"
            " give one of them another --name"
        )


def _rows_of(runs: list[Run]) -> list[Row]:
    """Returns a row for each kind of detection that runs of one name report.

    Calibrated detection has a row for each share of false alarms and k that it was calibrated for.
    """
    _refuse_mixture(runs)
    found: dict[tuple, Row] = {}
    for run in runs:
        for kind, point in run.operating_points().items():
            if kind == "full" and (run.row.endswith("-partial") or run.row == "scm-holistic"):
                continue  # the same scorer on the same responses as in the row "…-full" or "scm"
            target = run.target if kind == "partial_conformal" else None
            new = Row(run.display_name, kind, target and target[0], [], [], [])
            row = found.setdefault((KINDS.index(kind), target), new)
            row.runs.append(run)
            row.points.append(point)
            row.outcomes.append(point.decide(run.test))
    return [row for _, row in sorted(found.items())]


def sections_of(runs: list[Run]) -> list[list[Row]]:
    """Puts runs together to rows, and rows to sections: one for each test split.

    Raises:
        InputError: Runs of one name differ by more than the training's seed, or by nothing.
    """
    sections: dict[tuple, dict[tuple[str, str], list[Run]]] = {}
    for run in runs:
        named = sections.setdefault(split_key(run.test), {})
        named.setdefault((run.row, run.display_name), []).append(run)
    return [
        [row for same in named.values() for row in _rows_of(same)] for named in sections.values()
    ]

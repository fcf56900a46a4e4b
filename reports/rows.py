"""The output folders of tests, as rows to compare.

A row is a method by one kind of detection. Runs that differ by their training's seed alone are one
row. Rows of one test split are a section: only they can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.decisions import Outcome
from evaluation.predictions import FILE, METRICS, Predictions, load_predictions
from evaluation.protocol import Setting, choose_settings
from evaluation.runs import Run, find_tests, read_run, split_key, with_manner
from utils.files import InputError, read_json
from utils.run_record import read_record

# Order of the rows. An ablation is SCM under another name; guards are all keys "guard-…".
ORDER = (
    "scm",
    "qwen-full",
    "qwen-partial",
    "modernbert-full",
    "modernbert-partial",
    "ablation",
    "scm-holistic",
    "classifier",
    "guard",
    "tfidf",
    "length",
)
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


def place_of(row: str, method: str) -> tuple[int, bool]:
    """Sorts rows into the order of tables and figures.

    Args:
        row: Key of the row.
        method: The method's own name.

    Returns:
        The place, and whether the paper has no such row, or under another name: an ablation, say.
    """
    is_variant = (row, method) not in PAPER_ROWS
    key = "guard" if row.startswith("guard-") else row
    if key == "scm" and is_variant:
        key = "ablation"
    return ORDER.index(key) if key in ORDER else len(ORDER), is_variant


@dataclass
class Row:
    """A method by one kind of detection: one run, or one for each seed of the training.

    Attributes:
        name: The method's.
        kind: One of `KINDS`.
        target: Share of false alarms that θ was calibrated for; None where it was not.
        runs: One a seed; settings and outcomes are theirs.
    """

    name: str
    kind: str
    target: float | None
    runs: list[Run]
    settings: list[Setting]
    outcomes: list[Outcome]


def rank(run: Run) -> tuple:
    """Sorts runs into the tables' order."""
    return *place_of(run.row, run.method), run.name, run.row, str(run.folder)


def find_runs(runs_dir: Path) -> list[Run]:
    """Reads all test folders in and below a folder, in the tables' order.

    Raises:
        InputError: There is none, or one cannot be read.
    """
    folders = find_tests(runs_dir)
    if not folders:
        raise InputError(f"{runs_dir}: no test folder in it (none holds {METRICS})")
    return sorted((read_run(folder) for folder in folders), key=rank)


def same_predictions(one: Run, other: Run) -> bool:
    """Whether two runs scored all responses alike."""

    def scores(split: Predictions) -> np.ndarray:
        return np.concatenate([split.response_prob, *(split.token_probs or [])])

    pairs = ((one.valid, other.valid), (one.test, other.test))
    return all(
        np.array_equal(scores(first), scores(second), equal_nan=True) for first, second in pairs
    )


def one_a_seed(runs: list[Run]) -> list[Run]:
    """Drops copies of a run; one with another target of false alarms is none.

    Args:
        runs: Of one row.

    Raises:
        InputError: Two runs of one seed differ.
    """
    first: dict[int | None, Run] = {}
    kept: dict[tuple, Run] = {}
    for run in runs:
        seed = run.model.get("seed")
        before = first.setdefault(seed, run)
        if not same_predictions(before, run):
            raise InputError(
                f"{before.folder} and {run.folder}: other predictions for one row"
                f" ('{run.row}', '{run.name}'), one data set and one seed ({seed});"
                " remove one, or test it with another --name"
            )
        kept.setdefault((seed, run.target), run)
    return list(kept.values())


def rows_of(runs: list[Run], name: str) -> list[Row]:
    """Returns a row for each kind of detection that runs of one row report, one run a seed in each.

    Calibrated detection has a row for each share of false alarms and k that it was calibrated for.
    """
    found: dict[tuple, dict[int | None, tuple[Run, Setting]]] = {}
    for run in runs:
        for kind, setting in choose_settings(run.valid, run.test, *(run.target or ())).items():
            target = run.target if kind == "partial_conformal" else None
            same = found.setdefault((KINDS.index(kind), target), {})
            same.setdefault(run.model.get("seed"), (run, setting))
    rows = []
    for (place, target), seeds in sorted(found.items()):
        if KINDS[place] == "full" and runs[0].row.endswith("-partial"):
            continue  # that is the row "…-full"
        chosen, settings = map(list, zip(*seeds.values(), strict=True))
        outcomes = [setting.decide(run.test) for run, setting in seeds.values()]
        rows.append(Row(name, KINDS[place], target and target[0], chosen, settings, outcomes))
    return rows


def names_of(groups: list[list[Run]]) -> list[str]:
    """Names the rows of a section by their methods, namesakes by what tells them apart, too."""

    def options(run: Run) -> str:
        """Names the training's options that differ between this run and its namesakes."""
        key = run.row, run.name
        others = [runs[0].training for runs in groups if (runs[0].row, runs[0].name) == key]
        return ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in run.training.items()
            if any(name in other and other[name] != value for other in others)
        )

    tags = [
        {
            "backbone": Path(runs[0].model.get("base_model_path") or "").name,
            "options": options(runs[0]),
            "data": Path(runs[0].record["data"]["folder"]).name,
            "hash": f"data {runs[0].record['data']['meta_sha256'][:7]}",
            "folder": str(runs[0].folder),
        }
        for runs in groups
    ]
    names = []
    for runs, tag in zip(groups, tags, strict=True):
        key = runs[0].row, runs[0].name
        namesakes = [
            other
            for others, other in zip(groups, tags, strict=True)
            if (others[0].row, others[0].name) == key and other is not tag
        ]
        telling = [
            one for one in tag if tag[one] and all(tag[one] != other[one] for other in namesakes)
        ]
        names.append(f"{key[1]} ({tag[telling[0]]})" if namesakes else key[1])
    return names


def repeats_scm(row: Row, rows: list[Row]) -> bool:
    """Tells whether a row is SCM's full detection once more.

    The same holistic scorer judges complete responses, whichever of its scorers reads the tokens.
    """
    if row.kind != "full" or row.runs[0].row != "scm-holistic":
        return False
    shown = [run for one in rows if one.kind == "full" for run in one.runs if run.row == "scm"]
    return all(
        any(np.array_equal(run.test.response_prob, other.test.response_prob) for other in shown)
        for run in row.runs
    )


def sections_of(runs: list[Run]) -> list[list[Row]]:
    """Puts runs together to rows, and rows to sections: one for each test split."""
    sections: dict[tuple, dict[str, list[Run]]] = {}
    for run in runs:
        sections.setdefault(split_key(run.test), {}).setdefault(run.same_row, []).append(run)
    result = []
    for groups in sections.values():
        groups = [one_a_seed(group) for group in groups.values()]
        named = zip(groups, names_of(groups), strict=True)
        rows = [row for group, name in named for row in rows_of(group, name)]
        result.append([row for row in rows if not repeats_scm(row, rows)])
    return result


@dataclass
class Method:
    """A detector and what it did to the test split.

    Attributes:
        folder: Where its test lies.
        row: Key of its row: "scm", "qwen-full", "tfidf", …
        method: What it is called.
        test: The test split.
        full_theta: Chosen on validation, as are θ and k.
        full: Full detection of the test split.
        theta, k: Of delay-k detection.
        partial: Partial detection of the test split.
        config: The test's options, where they are known.

    What belongs to a kind of detection that there is not is None.
    """

    folder: Path
    row: str
    method: str
    test: Predictions
    full_theta: float | None = None
    full: Outcome | None = None
    theta: float | None = None
    k: int | None = None
    partial: Outcome | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method, and how its scores were approximated."""
        return with_manner(self.method, self.config)


def judge(folder: Path, row: str, method: str, valid: Predictions, test: Predictions) -> Method:
    """Chooses thresholds on validation and applies them to the test split."""
    settings = choose_settings(valid, test)
    full, partial = settings.get("full"), settings.get("partial")
    judged = Method(folder, row, method, test)
    if full is not None:
        judged.full_theta, judged.full = full.theta, full.decide(test)
    if partial is not None:
        judged.theta, judged.k, judged.partial = partial.theta, partial.k, partial.decide(test)
    return judged


def load_method(folder: Path) -> Method:
    """Reads a test folder.

    Raises:
        InputError: A file or a field is missing.
    """
    result = read_json(folder / METRICS)
    for name in ("row", "method"):
        if name not in result:
            raise InputError(f"{folder / METRICS}: field '{name}' is missing")
    method = judge(folder, result["row"], result["method"], **load_predictions(folder / FILE))
    method.config = (read_record(folder) or {}).get("config", {})
    return method


def comparable(methods: Sequence[Method]) -> tuple[list[Method], list[str]]:
    """Picks the methods that may stand in one figure, in the order of the paper's table.

    Returns:
        Those tested on the same responses, labelled the same (of several such groups the one with
        most methods, then the first), each row and name once; and a line for each left out.
    """
    notes, groups = [], {}
    for method in methods:
        same = groups.setdefault(split_key(method.test), {})
        first = same.setdefault((method.row, method.name), method)
        if first is not method:
            notes.append(f"{method.folder}: left out, {first.folder} has the same row and name")
    largest = max(groups.values(), key=len)
    for same in groups.values():
        if same is not largest:
            notes += [
                f"{method.folder}: left out, it was tested on another split than"
                f" {next(iter(largest.values())).folder}"
                for method in same.values()
            ]
    return sorted(largest.values(), key=lambda method: place_of(method.row, method.method)), notes


def full_detectors(methods: Sequence[Method]) -> list[Method]:
    """Leaves out who has none, or whose another one shows: a model tested partially, too."""
    kept: list[Method] = []
    for method in methods:
        scores = method.test.response_prob
        if method.full is not None and not any(
            method.method == other.method or np.array_equal(scores, other.test.response_prob)
            for other in kept
        ):
            kept.append(method)
    return kept

"""The output folders of tests, as rows to compare.

A row is a method by one kind of detection. Runs that differ by their training's seed alone are one
row. Rows of one test split are a section: only they can be compared.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluation import Setting, choose_settings
from utils.files import InputError, read_json
from utils.metrics import Outcome
from utils.predictions import FILE, METRICS, Predictions, find_tests, load_predictions
from utils.run_record import RECORD

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

# what is read of a test folder's files
NEEDED = {
    METRICS: ("row", "method"),
    RECORD: (
        "config.bootstrap",
        "config.seed",
        "data.folder",
        "data.meta_sha256",
        "git",
        "device",
        "seconds",
    ),
}

# Options of a training that make no other row of it: the seed, where things lie, what changes its
# speed and memory alone.
INCIDENTAL = {
    "seed", "output_dir", "data_dir", "base_model_path", "frozen_cache", "resume", "overwrite",
    "micro_batch_size", "gradient_checkpointing", "attention", "eval_tokens", "num_workers",
    "logging_steps", "save_total_limit",
}  # fmt: skip


def ordinal(number: int) -> str:
    """Formats 1, 2, … as 1st, 2nd, …"""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


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


def with_manner(method: str, config: dict[str, Any]) -> str:
    """Adds to a method's name how a test's options approximate its scores."""
    manner = [method]
    if config.get("stride", 1) > 1:
        manner.append(f"every {ordinal(config['stride'])} prefix")
    if config.get("stop_early"):
        manner.append("stopped early")
    return ", ".join(manner)


@dataclass
class Run:
    """The output folder of one test."""

    folder: Path
    row: str
    method: str
    record: dict[str, Any]  # run.json
    valid: Predictions
    test: Predictions

    @property
    def model(self) -> dict[str, Any]:
        """What the record says of the trained model; nothing for a floor."""
        return self.record.get("model") or {}

    @property
    def target(self) -> tuple[float, int] | None:
        """The share of false alarms that θ is calibrated for, and its k."""
        config = self.record["config"]
        share = config.get("target_false_alarm")
        if not share or config.get("stop_early"):  # cut scores, of earlier tests, calibrate nothing
            return None
        return share, config["target_k"]

    @property
    def name(self) -> str:
        """The method, and how its scores were approximated."""
        return with_manner(self.method, self.record["config"])

    @property
    def rank(self) -> tuple:
        """Sorts runs into the tables' order."""
        return *place_of(self.row, self.method), self.name, self.row, str(self.folder)

    @property
    def training(self) -> dict[str, Any]:
        """The training's options, seed and the like apart; none where the record tells none."""
        options = self.model.get("config") or {}
        return {name: options[name] for name in sorted(options) if name not in INCIDENTAL}

    @property
    def backbone(self) -> Any:
        """What tells the backbone from others: its weights' hashes, or its path if none is told."""
        files = self.model.get("backbone") or {}
        hashes = sorted(value for name, value in files.items() if name != "folder")
        return hashes or self.model.get("base_model_path")

    @property
    def same_row(self) -> str:
        """Equal for runs that differ by the training's seed alone."""
        trained_on, tested_on = self.model.get("data_sha256"), self.record["data"]["meta_sha256"]
        return json.dumps(
            [self.row, self.name, self.training, self.backbone, trained_on, tested_on]
        )


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


def read_run(folder: Path) -> Run:
    """Reads a test folder.

    Raises:
        InputError: A file or field is missing, or the predictions are of an older format.
    """
    files = {name: read_json(folder / name) for name in NEEDED}
    for file, fields in NEEDED.items():
        for name in fields:
            found: Any = files[file]
            for key in name.split("."):
                if not isinstance(found, dict) or key not in found:
                    raise InputError(f"{folder / file}: field '{name}': missing; test again")
                found = found[key]
    result, record = files.values()
    splits = load_predictions(folder / FILE)
    for name, split in splits.items():
        if not len(split):
            raise InputError(f"{folder / FILE}: split '{name}' holds no response")
        if result["row"].endswith("-partial") and split.token_probs is None:
            raise InputError(f"{folder / FILE}: array '{name}_token_probs' is missing")
    return Run(folder, result["row"], result["method"], record, **splits)


def find_runs(runs_dir: Path) -> list[Run]:
    """Reads all test folders in and below a folder, in the tables' order.

    Raises:
        InputError: There is none, or one cannot be read.
    """
    folders = find_tests(runs_dir)
    if not folders:
        raise InputError(f"{runs_dir}: no test folder in it (none holds {METRICS})")
    return sorted((read_run(folder) for folder in folders), key=lambda run: run.rank)


def split_key(test: Predictions) -> tuple:
    """Equal for test splits of the same responses, labelled and grouped the same.

    Only detectors tested on such splits can be compared, in one table or one figure.
    """
    return tuple(test.ids), tuple(test.label.tolist()), tuple(test.group.tolist())


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

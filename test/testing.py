"""The course of a test: score both splits, evaluate, write the folder."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.splits import Examples, ProcessedData, load_examples
from data.tokenization import load_tokenizer
from evaluation.predict import Scores
from evaluation.predictions import (
    METRICS,
    PREDICTIONS,
    SCORED_SPLITS,
    Predictions,
    collect,
    save_predictions,
)
from evaluation.protocol import evaluate
from reports.drawing import plot_stop_positions
from reports.summary import format_table
from test.options import EvaluationConfig, ReportConfig
from utils.files import InputError, read_json, write_json
from utils.formatting import printable

# A scorer scores the examples of the named split; a method differs from another in this alone.
Scorer = Callable[[Examples, str], Scores]


def scored_splits(config: EvaluationConfig, data: ProcessedData) -> list[str]:
    """Names the splits that a test scores; those of given thresholds may lack validation."""
    lacks_valid = config.given_thresholds() is not None and "valid" not in data.splits
    return ["test"] if lacks_valid else [*SCORED_SPLITS]


def run_evaluation(
    config: EvaluationConfig,
    data: ProcessedData,
    row: str,
    method: str,
    score: Scorer,
    folder: Path,
) -> dict[str, Any]:
    """Scores validation and test, fills the folder and prints the table.

    Args:
        row: Key of the row, as in the README: "scm", "qwen-full", "tfidf", …
        method: Name of the row, unless the options name it.
        score: The method.
        folder: From `run_folder`.

    Returns:
        The content of metrics.json.
    """
    tokenizer = load_tokenizer(data.folder / "tokenizer")
    splits, given = {}, config.given_thresholds()
    for name in scored_splits(config, data):
        examples = load_examples(data, name)
        if given is None and len(set(examples.response_label.tolist())) < 2:
            raise InputError(f"{data.folder}: split '{name}' lacks a class")
        splits[name] = collect(examples, score(examples, name), tokenizer)
    target = config.target_false_alarm, config.target_k
    return report(config, splits, row, method, folder, given, target)


def report(
    config: ReportConfig,
    splits: dict[str, Predictions],
    row: str,
    method: str,
    folder: Path,
    given: tuple[float, int | None] | None = None,
    target: tuple[float, int] = (0.0, 4),
    **more: Any,
) -> dict[str, Any]:
    """Chooses thresholds unless they are given, measures, fills the folder and prints the table.

    Args:
        splits: "test" and, where thresholds are to be chosen, "valid".
        given: θ and k from elsewhere; k None: of full detection.
        target: Share of false alarms that θ is calibrated for as well, and its k; 0 for none.
        more: Further entries of metrics.json.

    Returns:
        The content of metrics.json.
    """
    method = printable(config.name or method)
    result = {"row": row, "method": method, **more} | evaluate(
        splits.get("valid"), splits["test"], config.bootstrap, config.seed, *target, given
    )
    write_json(folder / METRICS, result)
    result = read_json(folder / METRICS)  # NaN has become null
    save_predictions(folder / PREDICTIONS, splits)
    print(format_table(result))
    if "partial" in result:
        try:
            plot_stop_positions(result["partial"], method, folder / "stop_positions.png")
        except Exception as error:  # whatever goes wrong there, the scores took hours
            print(f"no stop_positions.png: {error}", file=sys.stderr)
    return result

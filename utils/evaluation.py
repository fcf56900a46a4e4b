"""From scores to a report: the one protocol every method is measured by.

(θ, k) chosen on validation is the result; the paper's own protocol, which picks them on the test
split, stands beside it and is named as optimistic.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import InputError, atomic_folder, read_json, write_json
from utils.metrics import (
    FULL_THETAS,
    MAX_K,
    THETAS,
    Outcome,
    full_outcome,
    interval_metrics,
    partial_outcome,
    point_metrics,
    select_full,
    select_partial,
    stop_histogram,
)
from utils.predict import Scores
from utils.report import format_table, plot_stop_positions
from utils.run_record import start_record, write_record
from utils.splits import Examples, ProcessedData, load_examples

MARK = "metrics.json"  # each output folder of a test holds it

# A scorer scores the examples of the named split; a method differs from another in this alone.
Scorer = Callable[[Examples, str], Scores]


def evaluate(
    valid: Examples,
    valid_scores: Scores,
    test: Examples,
    test_scores: Scores,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Chooses thresholds on validation and measures the test split.

    Args:
        valid: Validation examples.
        valid_scores: Their scores.
        test: Test examples.
        test_scores: Their scores.
        resamples: Bootstrap samples of the 95 % intervals.
        seed: Of the bootstrap.

    Returns:
        The content of metrics.json; NaN where undefined.
    """

    def full(examples: Examples, scores: Scores, theta: float) -> Outcome:
        return full_outcome(scores.response_prob, *truth(examples), theta)

    def partial(examples: Examples, scores: Scores, theta: float, k: int) -> Outcome:
        return partial_outcome(scores.token_probs, *truth(examples), theta, k)

    def truth(examples: Examples) -> tuple:
        return examples.response_token_labels, examples.response_label, examples.prompt_group

    theta = select_full(valid_scores.response_prob, valid.response_label, FULL_THETAS)
    result: dict[str, Any] = {
        "responses": {
            name: {
                "all": len(examples),
                "harmful": int(examples.response_label.sum()),
                "prompts": len(set(examples.prompt_group.tolist())),
            }
            for name, examples in (("valid", valid), ("test", test))
        },
        "full": {
            "theta": theta,
            "chosen_on": "valid",
            "valid": point_metrics(full(valid, valid_scores, theta)),
            "test": interval_metrics(full(test, test_scores, theta), resamples, seed),
        },
    }
    if test_scores.token_probs is None:
        return result
    for key, chosen_on, examples, scores in (
        ("partial", "valid", valid, valid_scores),
        ("partial_paper_protocol", "test", test, test_scores),
    ):
        label = examples.response_label
        theta, k = select_partial(scores.token_probs, label, THETAS, MAX_K)
        outcome = partial(test, test_scores, theta, k)
        result[key] = {
            "theta": theta,
            "k": k,
            "chosen_on": chosen_on,
            "valid": point_metrics(partial(valid, valid_scores, theta, k)),
            "test": interval_metrics(outcome, resamples, seed),
            "stop_histogram": stop_histogram(outcome).tolist(),
        }
    return result


def run_evaluation(config: Any, data: ProcessedData, method: str, score: Scorer) -> dict[str, Any]:
    """Scores validation and test, writes the report folder and prints the table.

    Args:
        config: The stage's dataclass, with output_dir, bootstrap, seed and overwrite.
        data: Processed data.
        method: Name of the row.
        score: The method.

    Returns:
        The content of metrics.json.
    """
    began, folder = time.monotonic(), Path(config.output_dir)
    record = start_record(config, data.summary())
    splits = {name: load_examples(data, name) for name in ("valid", "test")}
    for name, examples in splits.items():
        if len(set(examples.response_label.tolist())) < 2:
            raise InputError(f"{data.folder}: split '{name}' lacks a class")
    scores = {name: score(examples, name) for name, examples in splits.items()}
    result = {"method": method} | evaluate(
        splits["valid"], scores["valid"], splits["test"], scores["test"],
        config.bootstrap, config.seed,
    )  # fmt: skip
    with atomic_folder(folder, MARK, config.overwrite) as partial:
        write_json(partial / "metrics.json", result)
        result = read_json(partial / "metrics.json")  # NaN has become null
        np.savez_compressed(partial / "predictions.npz", **_arrays(splits, scores))
        if "partial" in result:
            plot_stop_positions(result["partial"], method, partial / "stop_positions.png")
        write_record(partial, record, started=began)
    print(format_table(result))
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return result


def _arrays(splits: dict[str, Examples], scores: dict[str, Scores]) -> dict[str, np.ndarray]:
    """Flattens the ragged columns: response i of a split holds offsets[i] … offsets[i + 1]."""
    arrays = {}
    for name, examples in splits.items():
        arrays[f"{name}_ids"] = np.array(examples.ids)
        arrays[f"{name}_response_label"] = examples.response_label.astype(np.int8)
        arrays[f"{name}_prompt_group"] = examples.prompt_group
        arrays[f"{name}_offsets"] = np.cumsum([0, *examples.response_lengths])
        arrays[f"{name}_token_labels"] = np.concatenate(examples.response_token_labels)
        arrays[f"{name}_response_prob"] = scores[name].response_prob
        if scores[name].token_probs is not None:
            arrays[f"{name}_token_probs"] = np.concatenate(scores[name].token_probs)
    return arrays

"""The course of a test: score both splits, evaluate, write the folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.splits import Examples, ProcessedData, load_examples
from data.tokenization import load_tokenizer
from evaluation.predict import Scores
from evaluation.predictions import METRICS, PREDICTIONS, SCORED_SPLITS, collect, save_predictions
from evaluation.protocol import evaluate
from reports.drawing import plot_stop_positions
from reports.summary import format_table
from test.options import EvaluationConfig
from utils.files import InputError, read_json, write_json
from utils.formatting import printable
from utils.run_record import run_folder

# A scorer scores the examples of the named split; a method differs from another in this alone.
Scorer = Callable[[Examples, str], Scores]


@contextmanager
def test_folder(config: EvaluationConfig) -> Iterator[Path]:
    """Fills the folder of a test, see `run_folder`; its picture comes last and costs no scores."""
    with run_folder(config) as folder:
        yield folder
    done = Path(config.output_dir)
    result = read_json(done / METRICS)
    if "partial" in result:
        plot_stop_positions(result["partial"], result["method"], done / "stop_positions.png")


def run_evaluation(
    config: EvaluationConfig,
    data: ProcessedData,
    row: str,
    method: str,
    score: Scorer,
    folder: Path,
) -> dict[str, Any]:
    """Scores validation and test, fills the report folder and prints the table.

    Args:
        config: The options.
        data: Processed data.
        row: Key of the row, as in the README: "scm", "qwen-full", "tfidf", …
        method: Name of the row, unless the options name it.
        score: The method.
        folder: Where to write to, from `test_folder`.

    Returns:
        The content of metrics.json.
    """
    tokenizer = load_tokenizer(data.folder / "tokenizer")
    splits = {}
    for name in SCORED_SPLITS:
        examples = load_examples(data, name)
        if len(set(examples.response_label.tolist())) < 2:
            raise InputError(f"{data.folder}: split '{name}' lacks a class")
        splits[name] = collect(examples, score(examples, name), tokenizer)
    method = printable(config.name or method)
    result = {"row": row, "method": method} | evaluate(
        splits["valid"], splits["test"], config.bootstrap, config.seed,
        config.target_false_alarm, config.target_k,
    )  # fmt: skip
    write_json(folder / METRICS, result)
    result = read_json(folder / METRICS)  # NaN has become null
    save_predictions(folder / PREDICTIONS, splits)
    print(format_table(result))
    return result

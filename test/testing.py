"""The course of a test: score both splits, evaluate, write the folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.batches import TOKEN_BUDGET
from data.splits import Examples, ProcessedData, load_examples
from data.tokenization import load_tokenizer
from evaluation.predict import Scores
from evaluation.predictions import METRICS, PREDICTIONS, SCORED_SPLITS, collect, save_predictions
from evaluation.protocol import evaluate
from reports.drawing import plot_stop_positions
from reports.summary import format_table
from utils.device import Precision
from utils.files import InputError, atomic_folder, read_json, refuse_below_one, write_json
from utils.formatting import printable
from utils.run_record import start_record, write_record

# A scorer scores the examples of the named split; a method differs from another in this alone.
Scorer = Callable[[Examples, str], Scores]


@dataclass
class EvaluationConfig:
    """Options that the tests of all rows share."""

    data_dir: str = field(metadata={"help": "Processed data, made by scripts/run-data.sh."})
    output_dir: str = field(metadata={"help": "Folder for metrics, predictions and the figure."})
    name: str = field(default="", metadata={"help": "Name of the row in tables; default its own."})
    target_false_alarm: float = field(
        default=0.0,
        metadata={
            "help": "Also report delay-k detection whose θ is calibrated on benign validation"
            " responses to let through at most this share of false alarms; 0 for none."
        },
    )
    target_k: int = field(default=4, metadata={"help": "k of --target-false-alarm."})
    bootstrap: int = field(default=2000, metadata={"help": "Samples of the 95 %% intervals."})
    seed: int = field(default=42, metadata={"help": "Of the bootstrap."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output folder."})

    def __post_init__(self) -> None:
        refuse_below_one(self, "bootstrap", "target_k")
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is below 0")
        if not 0 <= self.target_false_alarm < 1:
            raise InputError(f"--target-false-alarm: {self.target_false_alarm} is not in 0…1")

    def refuse_target(self, reason: str) -> None:
        """Raises InputError where θ is to be calibrated for a share of false alarms."""
        if self.target_false_alarm or self.target_k != EvaluationConfig.target_k:
            raise InputError(f"--target-false-alarm, --target-k: {reason}")


@dataclass(kw_only=True)
class ModelTestConfig(EvaluationConfig):
    """Options that the tests of neural models share."""

    model_path: str = field(metadata={"help": "The model's folder; of ours, the training's."})
    precision: Precision = field(
        default="fp32",
        metadata={"help": "fp32: scores do not depend on the batch. auto, bf16: faster."},
    )
    token_budget: int = field(default=TOKEN_BUDGET, metadata={"help": "Padded tokens a batch."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(self, "token_budget")


def run_evaluation(
    config: EvaluationConfig,
    data: ProcessedData,
    row: str,
    method: str,
    score: Scorer,
    model: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Scores validation and test, writes the report folder and prints the table.

    Args:
        config: The options.
        data: Processed data.
        row: Key of the row, as in the README: "scm", "qwen-full", "tfidf", …
        method: Name of the row, unless the options name it.
        score: The method.
        model: What the run record says of the model (`model_summary`).

    Returns:
        The content of metrics.json.
    """
    began, folder = time.monotonic(), Path(config.output_dir)
    record = start_record(config, data.summary()) | {"model": model}
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
    with atomic_folder(folder, METRICS, config.overwrite) as partial:
        write_json(partial / METRICS, result)
        result = read_json(partial / METRICS)  # NaN has become null
        save_predictions(partial / PREDICTIONS, splits)
        write_record(partial, record, started=began)
    if "partial" in result:  # a picture that fails costs no scores
        plot_stop_positions(result["partial"], method, folder / "stop_positions.png")
    print(format_table(result))
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return result

"""Tests ModernBERT, full detection and partial (scripts/run-modernbert-{full,partial}.sh test).

It is bidirectional: partial detection encodes every prefix anew.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.splits import Examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.predict import Scores, predict
from evaluation.predictions import METRICS
from evaluation.prefixes import predict_prefixes
from model.modernbert import load_full_detection
from model.modernbert_inference import ModernBertInference
from test.testing import ModelTestConfig, run_evaluation
from utils.cli import run_command
from utils.device import default_device, use_bf16
from utils.files import InputError, refuse_below_one, refuse_overwrite
from utils.run_record import model_summary

NAME = "ModernBERT"
POSITIONAL = ("row",)  # the first words of the command line


@dataclass(kw_only=True)
class TestConfig(ModelTestConfig):
    """Options of the test."""

    row: Literal["modernbert-full", "modernbert-partial"] = field(
        metadata={"help": "Row of the paper's table."}
    )
    stride: int = field(
        default=1,
        metadata={"help": "Partial: score every N-th prefix only, a coarse sweep; 1 for all."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(self, "stride")
        if self.row == "modernbert-full":
            if self.stride > 1:
                raise InputError("--stride: full detection scores no prefixes")
            self.refuse_target("full detection stops no stream")


def main(config: TestConfig) -> None:
    """Scores validation and test and reports."""
    refuse_overwrite(Path(config.output_dir), config.overwrite, METRICS)
    folder, device = Path(config.model_path), default_device()
    data = load_processed(Path(config.data_dir), load_tokenizer(folder))
    model = ModernBertInference(load_full_detection(folder)).to(device)
    bf16 = use_bf16(config.precision, device)

    def score(examples: Examples, split: str) -> Scores:
        shared = {"bf16": bf16, "token_budget": config.token_budget, "description": split}
        if config.row == "modernbert-full":
            return predict(model, examples, **shared)
        return predict_prefixes(model, examples, stride=config.stride, **shared)

    run_evaluation(config, data, config.row, NAME, score, model_summary(folder))


if __name__ == "__main__":
    run_command(TestConfig, main, POSITIONAL)

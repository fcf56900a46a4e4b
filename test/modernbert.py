"""Tests ModernBERT, full detection and partial (scripts/run-modernbert-{full,partial}.sh test).

It is bidirectional: partial detection encodes every prefix anew.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.splits import Examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.decisions import MAX_K, THETAS
from evaluation.predict import Scores, predict
from evaluation.predictions import METRICS
from evaluation.prefixes import StopEarly, predict_prefixes
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
    stop_early: bool = field(
        default=False,
        metadata={
            "help": "Partial: leave a response once every (θ, k) of the sweep has fired. No"
            " decision changes; AUROC then ranks by the scores so far."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(self, "stride")
        if self.row == "modernbert-full" and (self.stride > 1 or self.stop_early):
            raise InputError("--stride, --stop-early: full detection scores no prefixes")
        if self.row == "modernbert-full":
            self.refuse_target("full detection stops no stream")
        if self.stop_early:
            self.refuse_target("θ is calibrated on scores that --stop-early cuts; leave one out")


def main(config: TestConfig) -> None:
    """Scores validation and test and reports."""
    refuse_overwrite(Path(config.output_dir), config.overwrite, METRICS)
    folder, device = Path(config.model_path), default_device()
    data = load_processed(Path(config.data_dir), load_tokenizer(folder))
    model = ModernBertInference(load_full_detection(folder)).to(device)
    bf16 = use_bf16(config.precision, device)
    # the hardest (θ, k) of the sweep: when it has fired, all others have
    stop = StopEarly(max(THETAS), MAX_K) if config.stop_early else None

    def score(examples: Examples, split: str) -> Scores:
        shared = {"bf16": bf16, "token_budget": config.token_budget, "description": split}
        if config.row == "modernbert-full":
            return predict(model, examples, **shared)
        return predict_prefixes(model, examples, stride=config.stride, stop_early=stop, **shared)

    run_evaluation(config, data, config.row, NAME, score, model_summary(folder))


if __name__ == "__main__":
    run_command(TestConfig, main, POSITIONAL)

"""Tests SCM: the token scorer by delay-k detection (scripts/run-scm.sh test)."""

from dataclasses import dataclass, field
from pathlib import Path

from model.qwen_dual_task import load_dual_task
from utils.cli import run_command
from utils.evaluation import MARK, run_evaluation
from utils.files import InputError, refuse_overwrite
from utils.predict import Precision, Scores, ScoreWith, default_device, predict, use_bf16
from utils.splits import Examples, load_processed
from utils.tokenization import load_tokenizer


@dataclass
class TestConfig:
    """Options of the test."""

    model_path: str = field(metadata={"help": "Output folder of the training step."})
    data_dir: str = field(metadata={"help": "Processed data, made by scripts/run-data.sh."})
    output_dir: str = field(metadata={"help": "Folder for metrics, predictions and the figure."})
    score_with: ScoreWith = field(
        default="token",
        metadata={
            "help": "token: the token scorer, as in the paper. holistic: the holistic scorer at"
            " every token, as in the released code."
        },
    )
    precision: Precision = field(
        default="fp32",
        metadata={"help": "fp32: scores do not depend on the batch. auto, bf16: faster."},
    )
    token_budget: int = field(default=8192, metadata={"help": "Padded tokens a batch."})
    bootstrap: int = field(default=2000, metadata={"help": "Samples of the 95 %% intervals."})
    seed: int = field(default=42, metadata={"help": "Of the bootstrap."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output folder."})

    def __post_init__(self) -> None:
        for name in ("token_budget", "bootstrap"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is below 1")


def main(config: TestConfig) -> None:
    """Scores validation and test and reports."""
    refuse_overwrite(Path(config.output_dir), config.overwrite, MARK)
    data = load_processed(Path(config.data_dir), load_tokenizer(Path(config.model_path)))
    device = default_device()
    model = load_dual_task(Path(config.model_path)).to(device)

    def score(examples: Examples, split: str) -> Scores:
        return predict(
            model,
            examples,
            score_with=config.score_with,
            bf16=use_bf16(config.precision, device),
            token_budget=config.token_budget,
            description=split,
        )

    name = "SCM" if config.score_with == "token" else "SCM, holistic scorer at every token"
    run_evaluation(config, data, name, score)


if __name__ == "__main__":
    run_command(TestConfig, main)

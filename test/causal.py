"""Tests the causal rows, SCM and Qwen, in one pass a response (scripts/run-scm.sh test, …).

A causal model's score at a token does not depend on what comes later, so one pass gives the score
of every prefix.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from data.splits import Examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.predict import Scores, predict
from evaluation.predictions import METRICS, PREDICTIONS, load_predictions
from model.frozen import freeze_all_but_last, frozen_states, take_frozen_layers
from model.loading import backbone_key
from model.qwen_dual_task import QwenForDualTask, ScoreWith, load_dual_task
from monitor.calibrate import tested_settings
from monitor.settings import FILE as SETTINGS
from monitor.settings import leave_settings
from test.testing import ModelTestConfig, run_evaluation
from utils.cli import run_command
from utils.device import default_device, use_bf16
from utils.files import InputError, refuse_overwrite
from utils.run_record import RECORD, model_summary, read_record

NAMES = {
    "scm": "SCM",
    "scm-holistic": "SCM, holistic scorer at every token",
    "qwen-full": "Qwen",
    "qwen-partial": "Qwen",
}
POSITIONAL = ("row",)  # the first words of the command line


@dataclass(kw_only=True)
class TestConfig(ModelTestConfig):
    """Options of the test."""

    row: Literal["scm", "qwen-full", "qwen-partial"] = field(
        metadata={
            "help": "Row of the paper's table. scm: token scorer, partial detection. qwen-full: the"
            " holistic scorer of a model trained for full detection, on complete responses."
            " qwen-partial: the same at every response token."
        }
    )
    score_with: ScoreWith = field(
        default="token",
        metadata={
            "help": "Of the row scm. token: the token scorer, as in the paper. holistic: the"
            " holistic scorer at every token, as in the released code."
        },
    )
    frozen_cache: str = field(
        default="",
        metadata={
            "help": "Of a checkpoint trained with --last-layers: folder to keep the frozen layers'"
            " output in, shared by the tests of all such checkpoints on the same text."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row != "scm" and self.score_with != "token":
            raise InputError(f"--score-with: the row {self.row} has its holistic scorer alone")
        if self.row == "qwen-full":
            self.refuse_target("full detection stops no stream")


def take_frozen(model: QwenForDualTask, config: TestConfig) -> tuple[list[nn.Module], str]:
    """Takes out the layers that the training left as they were; returns them and their origin.

    Raises:
        InputError: The training's record tells of no such layers.
    """
    path = Path(config.model_path)
    record = read_record(path) or {}
    layers = record.get("config", {}).get("last_layers", 0)
    if not layers or "backbone" not in record:
        raise InputError(
            f"--frozen-cache: {path / RECORD}: field 'config.last_layers': no layer was frozen"
        )
    freeze_all_but_last(model, layers)
    return take_frozen_layers(model), backbone_key(record["backbone"])


def main(config: TestConfig) -> None:
    """Scores validation and test and reports; SCM's thresholds go beside the checkpoint, too.

    Raises:
        InputError: The checkpoint was not trained for this row.
    """
    refuse_overwrite(Path(config.output_dir), config.overwrite, METRICS)
    data = load_processed(Path(config.data_dir), load_tokenizer(Path(config.model_path)))
    device = default_device()
    model = load_dual_task(Path(config.model_path)).to(device)
    is_baseline = getattr(model.config, "alpha", None) == 0
    if is_baseline != config.row.startswith("qwen"):
        was, script = ("full detection", "qwen-full") if is_baseline else ("SCM", "scm")
        raise InputError(
            f"{config.model_path}/config.json: field 'alpha': it was trained as {was}; test it with"
            f" scripts/run-{script}.sh test"
        )
    untrained = model.untrained_holistic_scorer()
    if untrained and config.score_with == "holistic":
        raise InputError(f"--score-with: {config.model_path}/{untrained}")
    bf16 = use_bf16(config.precision, device)
    frozen, backbone = take_frozen(model, config) if config.frozen_cache else ([], "")
    token_scorer = config.row == "scm" and config.score_with == "token"

    def score(examples: Examples, split: str) -> Scores:
        if frozen:
            examples.frozen_states = frozen_states(
                model,
                frozen,
                examples,
                Path(config.frozen_cache),
                backbone=backbone,
                bf16=bf16,
                token_budget=config.token_budget,
            )
        scores = predict(
            model,
            examples,
            score_with="token" if token_scorer else "holistic",
            bf16=bf16,
            token_budget=config.token_budget,
            description=split,
        )
        token_probs, response_prob = scores.token_probs, scores.response_prob
        return Scores(
            None if config.row == "qwen-full" else token_probs,
            np.full_like(response_prob, np.nan) if untrained else response_prob,
        )

    is_variant = config.row == "scm" and not token_scorer
    row = "scm-holistic" if is_variant else config.row
    folder = Path(config.model_path)
    result = run_evaluation(config, data, row, NAMES[row], score, model_summary(folder))
    if row == "scm":  # a deployed monitor reads what was chosen here
        valid = load_predictions(Path(config.output_dir) / PREDICTIONS)["valid"]
        settings = tested_settings(result, valid, data.summary())
        leave_settings(folder / SETTINGS, settings, config.overwrite)
        if data.meta["join"] == "newline":
            print("its thresholds are of data with a newline after each sentence (--join newline);")
            print("live streams are as in data prepared with --join original")


if __name__ == "__main__":
    run_command(TestConfig, main, POSITIONAL)

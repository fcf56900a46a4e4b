"""Tests the causal rows, SCM and Qwen, in one pass a response (scripts/run-scm.sh test, …).

A causal model's score at a token does not depend on what comes later, so one pass gives the score
of every prefix.
"""

from pathlib import Path

import numpy as np

from data.meta import data_summary
from data.splits import Examples, load_examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.predict import Scores, predict
from evaluation.predictions import PREDICTIONS, load_predictions
from model.frozen import read_frozen_layers
from model.qwen_dual_task import QwenForDualTask, load_dual_task
from monitor.calibrate import tested_settings
from monitor.settings import FILE as SETTINGS
from monitor.settings import leave_settings
from test.options import CausalTestConfig
from test.testing import run_evaluation, scored_splits
from utils.device import default_device, use_bf16
from utils.files import InputError
from utils.run_record import RECORD, read_record, run_folder

NAMES = {
    "scm": "SCM",
    "scm-holistic": "SCM, holistic scorer at every token",
    "qwen-full": "Qwen",
    "qwen-partial": "Qwen",
}


def read_frozen(model: QwenForDualTask, config: CausalTestConfig, splits: list[Examples]) -> None:
    """Lets a model read the output of the layers that its training left as they were.

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
    read_frozen_layers(
        model,
        layers,
        splits,
        config.frozen_cache,
        backbone=record["backbone"],
        bf16=use_bf16(config.precision, default_device()),
        token_budget=config.token_budget,
    )


def main(config: CausalTestConfig) -> None:
    """Scores validation and test and reports; SCM's thresholds go beside the checkpoint, too.

    Raises:
        InputError: The checkpoint was not trained for this row.
    """
    with run_folder(config) as folder:
        data = load_processed(Path(config.data_dir), load_tokenizer(Path(config.model_path)))
        device = default_device()
        model = load_dual_task(Path(config.model_path)).to(device)
        is_baseline = model.config.alpha == 0
        if is_baseline != config.row.startswith("qwen"):
            was, script = ("full detection", "qwen-full") if is_baseline else ("SCM", "scm")
            raise InputError(
                f"{config.model_path}/config.json: field 'alpha': it was trained as {was}; test it"
                f" with scripts/run-{script}.sh test"
            )
        untrained = model.untrained_holistic_scorer()
        if untrained and config.score_with == "holistic":
            raise InputError(f"--score-with: {config.model_path}/{untrained}")
        bf16 = use_bf16(config.precision, device)
        if config.frozen_cache:
            names = scored_splits(config, data)
            read_frozen(model, config, [load_examples(data, name) for name in names])
        row = "scm-holistic" if config.score_with == "holistic" else config.row

        def score(examples: Examples, split: str) -> Scores:
            scores = predict(
                model,
                examples,
                score_with="token" if row == "scm" else "holistic",
                bf16=bf16,
                token_budget=config.token_budget,
                description=split,
            )
            return Scores(
                None if row == "qwen-full" else scores.token_probs,
                np.full_like(scores.response_prob, np.nan) if untrained else scores.response_prob,
            )

        result = run_evaluation(config, data, row, NAMES[row], score, folder)
        if row == "scm" and not config.settings:  # a deployed monitor reads what was chosen here
            valid = load_predictions(folder / PREDICTIONS)["valid"]
            settings = tested_settings(result, valid, data_summary(data.folder))
            leave_settings(Path(config.model_path) / SETTINGS, settings, config.overwrite)
            if data.meta["join"] == "newline":
                print("its thresholds are of data with a newline after each sentence; live streams")
                print("are as in data prepared with --join original")

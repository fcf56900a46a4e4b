"""What tests leave behind, for whatever reads it: folders of six responses made by hand."""

from pathlib import Path

import numpy as np

from evaluation.predictions import METRICS, PREDICTIONS, Predictions, save_predictions
from utils.files import write_json
from utils.run_record import RECORD

LABEL = (1, 1, 1, 0, 0, 0)
TEST_PROB = (0.8, 0.7, 0.2, 0.6, 0.3, 0.1)
PERFECT = (0.9, 0.9, 0.9, 0.1, 0.1, 0.1)
TEST_TOKENS = ([0.95], [0.95, 0.1], [0.1] * 3, [0.1], [0.95, 0.1], [0.1] * 3)


def six(label=LABEL, prob=TEST_PROB, tokens=TEST_TOKENS, name="r") -> Predictions:
    """Six responses to six prompts."""
    return Predictions(
        ids=[f"{name}{number}" for number in range(len(label))],
        label=np.array(label),
        group=np.arange(len(label)),
        token_labels=[np.zeros(len(some), np.int8) for some in TEST_TOKENS],
        pieces=[["x"] * len(some) for some in TEST_TOKENS],
        response_prob=np.array(prob, np.float32),
        token_probs=None if tokens is None else [np.array(some, np.float32) for some in tokens],
    )


def clear(partial: bool = True) -> Predictions:
    """A validation split that is told apart without a doubt: θ = 0.5; θ = 0.9 and k = 1."""
    tokens = [
        [0.95 if harmful else 0.1] * len(some)
        for harmful, some in zip(LABEL, TEST_TOKENS, strict=True)
    ]
    return six(prob=PERFECT, tokens=tokens if partial else None)


def write_run(
    folder: Path,
    row="scm",
    method="SCM",
    valid=None,
    test=None,
    seed=42,
    backbone="b/qwen",
    trained: dict | None = None,
    **config,
) -> Path:
    """Writes what a test leaves behind.

    Args:
        trained: More of what the record says of the model; without a seed, all of it.
        config: Options of the test.
    """
    folder.mkdir(parents=True)
    test = test or six()
    valid = valid or clear(test.token_probs is not None)
    write_json(folder / METRICS, {"row": row, "method": method})
    model = {"seed": seed, "commit": "a" * 40, "dirty": False, "seconds": 600.0}
    model["base_model_path"] = backbone
    record = {
        "config": {"bootstrap": 40, "seed": 7, **config},
        "data": {"folder": "runs/data", "meta_sha256": "f" * 64},
        "git": {"commit": "b" * 40, "dirty": True},
        "device": "cpu: a processor",
        "seconds": 30.0,
        "model": trained if seed is None else {**model, **(trained or {})},
    }
    write_json(folder / RECORD, record)
    save_predictions(folder / PREDICTIONS, {"valid": valid, "test": test})
    return folder

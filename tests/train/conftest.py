"""What the tests of trainings share: one epoch on the tiny model, and its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from test.causal import main as evaluate
from test.options import CausalTestConfig
from train.options import QwenConfig

FAST = {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 2e-3, "logging_steps": 1}


@pytest.fixture()
def config(tiny, tiny_data, tmp_path) -> QwenConfig:
    """One epoch of six steps on the tiny model, in float32."""
    return QwenConfig(
        str(tmp_path / "run"), str(tiny_data), str(tiny), epochs=1, eval_steps=3,
        precision="fp32", **FAST,
    )  # fmt: skip


def words_of(config: QwenConfig, *more: str) -> list[str]:
    """The command line of a configuration."""
    words = [
        "--output-dir", config.output_dir, "--data-dir", config.data_dir,
        "--base-model-path", config.base_model_path, "--epochs", str(config.epochs),
        "--eval-steps", str(config.eval_steps), "--precision", config.precision,
    ]  # fmt: skip
    for name in FAST:
        words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    return [*words, *more]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def largest_gap(one, other) -> float:
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs)
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def score_as(row: str, model: Path, data: Path, out: Path, **options) -> None:
    """Tests a checkpoint as a causal row."""
    evaluate(
        CausalTestConfig(
            str(data), str(out), row=row, model_path=str(model), bootstrap=50, **options
        )
    )

"""Trains SCM: a Qwen2 backbone with a token scorer and a holistic scorer (scripts/run-scm.sh).

With --alpha 0 --beta 0 it is the full-detection baseline (scripts/run-qwen-full.sh).
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from data.splits import Examples
from model.frozen import freeze_all_but_last, read_frozen_layers
from model.loading import backbone_key
from model.qwen_dual_task import QwenForDualTask, load_backbone
from train.training import TrainConfig, run_training
from utils.cli import run_command
from utils.device import default_device, use_bf16
from utils.files import InputError


@dataclass
class QwenConfig(TrainConfig):
    """Options of training SCM, or the Qwen baseline."""

    alpha: float = field(
        default=0.6, metadata={"help": "Weight of the token loss; 0 trains full detection."}
    )
    beta: float = field(default=1.0, metadata={"help": "Weight of the logic loss (paper's β)."})
    token_dropout: float = field(default=0.1, metadata={"help": "Dropout before the token scorer."})
    last_layers: int = field(
        default=0, metadata={"help": "Train only the last N layers, norm and heads; 0 trains all."}
    )
    frozen_cache: str = field(
        default="",
        metadata={
            "help": "With --last-layers: folder to keep the frozen layers' output in, computed once"
            " for all epochs and for further runs on the same text; 4 bytes × tokens × hidden size."
        },
    )
    lora_rank: int = field(
        default=0, metadata={"help": "LoRA on all linear layers of the backbone; 0 for none."}
    )
    lora_alpha: int = field(default=32, metadata={"help": "LoRA's scale numerator."})
    lora_dropout: float = field(default=0.05, metadata={"help": "LoRA's dropout."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range(0, 1, "alpha", "token_dropout", "lora_dropout")
        self.check_range(0, math.inf, "beta", "last_layers", "lora_rank")
        if self.last_layers and self.lora_rank:
            raise InputError("--last-layers and --lora-rank exclude each other")
        if self.frozen_cache and not self.last_layers:
            raise InputError("--frozen-cache: no layer is frozen without --last-layers")
        if self.frozen_cache and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("--frozen-cache: each process would write it; take one process")


def main(config: QwenConfig) -> None:
    """Trains SCM."""

    def make_model(backbone: dict[str, str], splits: Sequence[Examples]) -> nn.Module:
        model = load_backbone(
            Path(config.base_model_path),
            alpha=config.alpha,
            logic_weight=config.beta,
            token_dropout=config.token_dropout,
            attention=config.attention,
        )
        if config.lora_rank:
            return add_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout)
        if config.last_layers:
            freeze_all_but_last(model, config.last_layers)
        if config.frozen_cache:
            read_frozen_layers(
                model.to(default_device()),
                config.last_layers,
                splits,
                Path(config.frozen_cache),
                backbone=backbone_key(backbone),
                bf16=use_bf16(config.precision, default_device()),
                token_budget=config.eval_tokens,
            )
        return model

    # nothing trains the token scorer at 0
    run_training(config, make_model, score_with="token" if config.alpha else "holistic")


def add_lora(model: QwenForDualTask, rank: int, alpha: int, dropout: float) -> PeftModel:
    """Puts low-rank adapters on the backbone's linear layers; the heads train in full.

    Args:
        model: The model to wrap.
        rank: Rank of the adapters.
        alpha: Numerator of their scale alpha / rank.
        dropout: Dropout before them.
    """
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules="q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split(),
            modules_to_save=["token_classifier", "sequence_classifier"],
        ),
    )


if __name__ == "__main__":
    run_command(QwenConfig, main)

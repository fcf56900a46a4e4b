"""Trains SCM: a Qwen2 backbone with a token scorer and a holistic scorer (scripts/run-scm.sh).

With --alpha 0 --beta 0 it is the full-detection baseline (scripts/run-qwen-full.sh).
"""

from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig, get_peft_model
from torch import nn

from data.splits import Examples
from model.frozen import freeze_all_but_last, read_frozen_layers
from model.qwen_dual_task import load_backbone
from train.options import CausalConfig, QwenConfig
from train.training import train_detector
from utils.device import default_device, use_bf16


def main(config: QwenConfig) -> None:
    """Trains SCM."""

    def make_model(backbone: dict[str, str], splits: Sequence[Examples]) -> nn.Module:
        model = load_backbone(
            Path(config.base_model_path),
            alpha=config.alpha,
            logic_weight=config.beta,
            token_dropout=config.token_dropout,
            benign_weight=config.benign_weight,
            benign_k=config.benign_k,
            attention=config.attention,
            first_layers=config.first_layers,
        )
        if config.last_layers:
            freeze_all_but_last(model, config.last_layers)
        if config.frozen_cache:
            read_frozen_layers(
                model.to(default_device()),
                config.last_layers,
                splits,
                config.frozen_cache,
                backbone=backbone,
                bf16=use_bf16(config.precision, default_device()),
                token_budget=config.eval_tokens,
            )
        if not config.lora_rank:
            return model
        heads = ["token_classifier", "sequence_classifier"]
        return get_peft_model(model, lora(config, model.config.num_hidden_layers, heads))

    # nothing trains the token scorer at 0
    train_detector(config, make_model, score_with="token" if config.alpha else "holistic")


def lora(config: CausalConfig, depth: int, heads: list[str] | None = None) -> LoraConfig:
    """Describes low-rank adapters on linear layers of a backbone; `heads` train in full."""
    layers = range(depth - config.last_layers, depth) if config.last_layers else None
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split(),
        layers_to_transform=layers and list(layers),
        modules_to_save=heads,
    )

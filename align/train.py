"""Aligns a language model with preference pairs (scripts/run-align.sh)."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import DPOConfig
from trl.trainer.utils import disable_dropout_in_model

from align.dataset import SIDES, as_dataset, encode_pairs, reference_log_probs, weigh
from align.labels import Annotator
from align.options import AlignConfig, cache_of
from align.pairs import read_pairs
from align.trainer import PreferenceTrainer
from model.frozen import freeze_all_but_last, read_frozen_layers
from model.loading import context_length, load_checkpoint
from train.train_qwen import lora
from train.training import run_training, training_arguments
from utils.device import default_device, use_bf16
from utils.files import InputError


def main(config: AlignConfig) -> None:
    """Trains a policy; its reference is itself before the first step."""

    def make_trainer(
        record: dict[str, Any], tokenizer: PreTrainedTokenizerFast
    ) -> PreferenceTrainer:
        arguments = training_arguments(
            config,
            DPOConfig,
            beta=config.beta,
            max_length=config.max_length,
            precompute_ref_log_probs=True,
            disable_dropout=False,  # TRL would take away LoRA's, too
        )
        splits = read_pairs(Path(config.data_dir), "train", "valid")
        bounds = config.max_length, config.max_prompt_length
        encoded = {
            name: encode_pairs(splits[name], tokenizer, *bounds) for name in ("train", "valid")
        }
        record["pairs"] = {
            name: {"read": len(some), "left_out": len(splits[name]) - len(some)}
            for name, some in encoded.items()
        }
        set_seed(config.seed)
        model, _ = load_checkpoint(
            Path(config.base_model_path),
            AutoModelForCausalLM,
            "language model",
            "--base-model-path",
            attn_implementation=config.attention,
        )
        if config.max_length > (room := context_length(model, tokenizer)):
            raise InputError(f"--max-length: {config.max_length}; the policy has room for {room}")
        disable_dropout_in_model(model)
        model = model.to(default_device())
        if config.last_layers:
            freeze_all_but_last(model, config.last_layers)
            model.get_output_embeddings().requires_grad_(False)
        if config.frozen_cache:
            read_frozen_layers(
                model,
                config.last_layers,
                [[{"input_ids": ids} for item in some for ids in item.texts]
                 for some in encoded.values()],
                config.frozen_cache,
                backbone=record["backbone"],
                bf16=use_bf16(config.precision, model.device),
                token_budget=config.eval_tokens,
            )  # fmt: skip
        annotator, datasets = None, {}
        if config.annotator_model:
            annotator = Annotator(Path(config.annotator_model), cache_of(config) / "annotator")
        for name, some in encoded.items():
            weights = weigh(some, config, annotator)
            record["pairs"][name] |= totals(weights)
            reference = reference_log_probs(model, some, config, record["backbone"])
            datasets[name] = as_dataset(some, weights, reference)
        return PreferenceTrainer(
            config,
            model=model,
            args=arguments,
            train_dataset=datasets["train"],
            eval_dataset=datasets["valid"],
            processing_class=tokenizer,
            peft_config=lora(config, model.config.num_hidden_layers) if config.lora_rank else None,
        )

    run_training(config, make_trainer)


def totals(weights: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Returns how many tokens the answers of each side have, and their weight in all."""
    found: dict[str, Any] = {}
    for side, some in zip(SIDES, zip(*weights, strict=True), strict=True):
        found[f"{side}_tokens"] = sum(map(len, some))
        found[f"{side}_weight"] = float(sum(one.sum() for one in some))
    return found

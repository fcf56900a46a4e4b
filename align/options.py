"""Options of alignment."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluation.options import BootstrapConfig
from train.options import CausalConfig
from utils.files import InputError, sha256_file
from utils.options import TOKEN_BUDGET, refuse_below_one
from utils.run_record import model_summary

Method = Literal["sft", "dpo", "tokendpo"]
Weights = Literal["tokens", "even", "random", "mean-one", "mask"]


@dataclass
class AlignConfig(CausalConfig):
    """Options of aligning a language model with preference pairs.

    Every other option of transformers' TrainingArguments is passed on: --optim, --torch_compile, …
    """

    data_dir: str
    """Preference pairs: a JSON file with a field split, in TRL's conversational form, or
    PKU-SafeRLHF's folder of train and test."""
    method: Method = "dpo"
    """sft: on the chosen answers. dpo. tokendpo: DPO with weights from SCM's verdicts on tokens."""
    annotator_model: str = ""
    """Of tokendpo: the trained SCM, output folder of run-scm.sh or get-scm.sh."""
    state_cache: str = ""
    """Folder to keep the annotator's scores and the reference's log-probabilities in, shared by all
    runs; default OUTPUT_DIR.states."""
    beta: float = 0.1
    """DPO's β: how far the policy may leave the reference."""
    alpha: float = 1.0
    """Of tokendpo: α, how much a harmful token's weight differs from 1; 0 is DPO."""
    weights: Weights = "tokens"
    """Of tokendpo. Controls: the same extra weight even over the answer, on random tokens of it, or
    with a mean of 1. mask: of a rejected answer the harmful tokens alone."""
    soft: bool = False
    """Of tokendpo: weigh by SCM's probabilities; default by its verdicts at its token_theta."""
    max_length: int = 1024
    """Tokens of prompt and answer; answers are cut at their end."""
    max_prompt_length: int = 512
    """Pairs whose prompt has more tokens are left out."""
    epochs: float = 1.0
    """Passes over the training split."""
    batch_size: int = 32
    """Pairs an optimiser step sees, over all processes."""
    micro_batch_size: int = 4
    """Pairs one device holds at once: memory, not results."""
    learning_rate: float = 1e-5
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate schedule."""
    warmup_ratio: float = 0.1
    """Share of the steps with a rising rate."""
    eval_steps: float = 0.5
    """Validate and save every N optimiser steps; below 1, a share of all."""
    best_metric: Literal["last", "preference_accuracy", "loss"] = "last"
    """Validation metric that picks the checkpoint; last takes the last one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range(0, 1, "alpha")
        self.check_range(2, math.inf, "max_length")
        self.check_range(1, math.inf, "max_prompt_length")
        if self.lr_gamma != AlignConfig.lr_gamma:
            raise InputError("--lr-gamma: of no use, no schedule here has it")
        if not 0 < self.beta < math.inf:
            raise InputError(f"--beta: {self.beta} is not > 0")
        if self.max_prompt_length >= self.max_length:
            raise InputError("--max-prompt-length: leaves no room for answers in --max-length")
        by_token = self.method == "tokendpo"
        if by_token != bool(self.annotator_model):
            needs = "is needed" if by_token else "of no use"
            raise InputError(f"--annotator-model: {needs} with --method {self.method}")
        if not by_token and (self.weights != "tokens" or self.soft or self.alpha != 1.0):
            raise InputError(f"--weights, --soft, --alpha: of no use with --method {self.method}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("alignment runs in one process; several GPUs are not supported yet")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        from align.pairs import pairs_input
        from model.loading import backbone_summary  # PyTorch: seconds

        inputs = {
            "data": pairs_input(self.data_dir),
            "backbone": backbone_summary(Path(self.base_model_path)),
        }
        if self.annotator_model:
            inputs["annotator"] = annotator_input(self.annotator_model)
        return inputs


@dataclass(kw_only=True)
class SampleConfig:
    """Options of making pairs out of a policy's own answers."""

    model_path: str
    """The policy: output folder of run-align.sh, or any language model's."""
    annotator_model: str
    """The trained SCM that ranks the answers, with its monitor.json."""
    prompts: str
    """Labelled prompts; those of train and valid are asked, whatever their label."""
    output_dir: str
    """Folder to write pairs.jsonl in."""
    train_prompts: int = 800
    """Prompts of train that are drawn."""
    valid_prompts: int = 120
    """Prompts of valid that are drawn."""
    samples: int = 4
    """Answers to a prompt."""
    temperature: float = 1.0
    """Of sampling."""
    max_new_tokens: int = 64
    """Tokens of an answer."""
    longest_prompt: int = 256
    """Longer prompts, in tokens, are left out."""
    least_gap: float = 0.2
    """Least difference of two answers' statistics, SCM's stopping rule's, that makes a pair."""
    token_budget: int = TOKEN_BUDGET
    """Padded tokens a batch."""
    seed: int = 42
    """Of the draw, and of sampling."""
    overwrite: bool = False
    """Replace the output folder."""

    def __post_init__(self) -> None:
        refuse_below_one(
            self,
            *"train_prompts valid_prompts max_new_tokens longest_prompt token_budget".split(),
        )
        if self.samples < 2:
            raise InputError(f"--samples: {self.samples} make no pair")
        for name in ("temperature", "least_gap"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not > 0")
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is below 0")

    @property
    def count(self) -> dict[str, int]:
        """Prompts of each split that are drawn."""
        return {"train": self.train_prompts, "valid": self.valid_prompts}

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {
            "data": {"prompts": sha256_file(Path(self.prompts))},
            "model": model_summary(Path(self.model_path)),
            "annotator": annotator_input(self.annotator_model),
        }


@dataclass(kw_only=True)
class LabelsConfig(BootstrapConfig):
    """Options of comparing an annotator's verdicts with the pairs."""

    data_dir: str
    """Preference pairs, as in training."""
    annotator_model: str
    """The trained SCM, with its monitor.json."""
    output_dir: str
    """Folder to write labels.json in."""
    state_cache: str = ""
    """Folder to keep the annotator's scores in, that of the trainings; default
    OUTPUT_DIR.states."""

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        from align.pairs import pairs_input

        return {
            "data": pairs_input(self.data_dir),
            "annotator": annotator_input(self.annotator_model),
        }


def cache_of(config: AlignConfig | LabelsConfig) -> Path:
    """Returns where scores and log-probabilities are kept."""
    return Path(config.state_cache or f"{config.output_dir}.states")


def annotator_input(path: str) -> dict[str, Any]:
    """Returns what a record says of a trained SCM that annotates."""
    from monitor.settings import FILE

    return model_summary(Path(path)) | {FILE: sha256_file(Path(path) / FILE)}

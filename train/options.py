"""Options of the trainings."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from data.meta import data_summary
from model.options import Attention
from utils.files import InputError
from utils.options import TOKEN_BUDGET, Precision


@dataclass
class TrainConfig:
    """Options that all trainings share. Defaults are the paper's for Qwen2.5 backbones.

    Every other option of transformers' TrainingArguments is passed on: --optim, --torch_compile,
    --deepspeed, --fsdp, …
    """

    output_dir: str
    """Folder of the run; the best model at its root."""
    data_dir: str
    """Processed data, made by scripts/run-data.sh."""
    base_model_path: str
    """Backbone's folder (safetensors)."""
    epochs: float = 3.0
    """Passes over the training split."""
    batch_size: int = 16
    """Responses an optimiser step sees, over all processes."""
    micro_batch_size: int = 8
    """Responses one device holds at once: memory, not results."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    scheduler: Literal["exponential", "linear", "cosine", "constant"] = "exponential"
    """Learning-rate schedule."""
    lr_gamma: float = 0.99
    """Decay an optimiser step, of --scheduler exponential."""
    warmup_ratio: float = 0.0
    """Share of the steps with a rising rate; not exponential."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 for none."""
    precision: Precision = "auto"
    """auto: bf16 mixed precision on hardware made for it (GPU, AMX, AVX-512 BF16)."""
    attention: Attention = "sdpa"
    """eager is the fastest for short texts on a CPU; memory is quadratic."""
    gradient_checkpointing: bool = False
    """Recompute activations: less memory, more time."""
    eval_steps: float = 0.1
    """Validate and save every N optimiser steps; below 1, a share of all."""
    eval_tokens: int = TOKEN_BUDGET
    """Padded tokens a validation batch."""
    best_metric: Literal["macro_f1", "full_auroc", "loss"] = "macro_f1"
    """Validation metric that picks the best checkpoint."""
    logging_steps: int = 10
    """Log every N optimiser steps."""
    save_total_limit: int = 2
    """Checkpoints kept for --resume, the best included."""
    num_workers: int = 0
    """Processes that collate batches."""
    seed: int = 42
    """Of heads, dropout and order."""
    resume: bool = False
    """Go on from the last checkpoint; start if there is none."""
    overwrite: bool = False
    """Delete an earlier run first."""
    passed_on: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Further options, for transformers' TrainingArguments."""

    def __post_init__(self) -> None:
        self.check_range(0, 1, "warmup_ratio")
        self.check_range(0, math.inf, "seed", "max_grad_norm", "weight_decay")
        positive = "epochs batch_size micro_batch_size learning_rate eval_steps logging_steps"
        for name in positive.split():
            if not 0 < getattr(self, name) < math.inf:  # false for NaN, too
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not > 0")
        if self.eval_steps >= 1 and self.eval_steps % 1:
            raise InputError(f"--eval-steps: {self.eval_steps} is neither a share nor whole")
        if self.warmup_ratio == 1:
            raise InputError("--warmup-ratio: 1 leaves nothing to train with")
        if self.scheduler == "exponential" and self.warmup_ratio:
            raise InputError("--warmup-ratio: the exponential schedule has no warm-up")
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite exclude each other")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read: the data and the backbone."""
        from model.loading import backbone_summary  # PyTorch: seconds

        backbone = backbone_summary(Path(self.base_model_path))
        return {"data": data_summary(self.data_dir), "backbone": backbone}

    def check_range(self, low: float, high: float, *names: str) -> None:
        """Raises InputError where an option is outside of low … high."""
        span = f">= {low}" if high == math.inf else f"in {low}…{high}"
        for name in names:
            value = getattr(self, name)
            if not (low <= value <= high and value < math.inf):
                raise InputError(f"--{name.replace('_', '-')}: {value} is not {span}")


@dataclass
class CausalConfig(TrainConfig):
    """Options of trainings of a causal language model, which may be of a part of it."""

    last_layers: int = 0
    """Train only the last N layers, the norm behind them and a detector's heads; 0 trains all."""
    frozen_cache: str = ""
    """With --last-layers: folder to keep the frozen layers' output in, computed once for all
    epochs and for further runs on the same text; 4 bytes × tokens × hidden size."""
    lora_rank: int = 0
    """LoRA on all linear layers of the backbone, or of its last N with --last-layers; 0: none."""
    lora_alpha: int = 32
    """LoRA's scale numerator."""
    lora_dropout: float = 0.05
    """LoRA's dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range(0, 1, "lora_dropout")
        self.check_range(0, math.inf, "last_layers", "lora_rank")
        if self.frozen_cache and not self.last_layers:
            raise InputError("--frozen-cache: no layer is frozen without --last-layers")
        if self.frozen_cache and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("--frozen-cache: each process would write it; take one process")


@dataclass
class QwenConfig(CausalConfig):
    """Options of training SCM, or the Qwen baseline.

    Every other option of transformers' TrainingArguments is passed on: --optim, --torch_compile,
    --deepspeed, --fsdp, …
    """

    alpha: float = 0.6
    """Weight of the token loss; 0 trains full detection."""
    beta: float = 1.0
    """Weight of the logic loss (paper's β)."""
    benign_weight: float = 0.0
    """Weight of a loss on benign responses with k harmful tokens; the paper has none."""
    benign_k: int = 4
    """Its k."""
    token_dropout: float = 0.1
    """Dropout before the token scorer."""
    first_layers: int = 0
    """Keep only the backbone's first N layers; 0 keeps all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_range(0, 1, "alpha", "token_dropout")
        self.check_range(0, math.inf, "beta", "first_layers", "benign_weight")
        self.check_range(1, math.inf, "benign_k")

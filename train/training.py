"""The course of a training, the same for every row: options, Trainer, run folder."""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback

from data.batches import TOKEN_BUDGET
from data.splits import Examples, load_examples, load_processed
from data.tokenization import load_tokenizer
from model.loading import Attention, backbone_summary
from model.qwen_dual_task import ScoreWith
from train.trainer import DualTaskTrainer, last_complete_checkpoint, remove_later_checkpoints
from utils.device import Precision, default_device, use_bf16
from utils.files import InputError, refuse_overwrite
from utils.run_record import RECORD, check_same_run, read_record, start_record, write_record

# Options a resumed run may change: none of them changes what is computed.
FREE_ON_RESUME = {"resume", "overwrite", "output_dir", "base_model_path", "data_dir"}
FREE_ON_RESUME |= {"logging_steps", "save_total_limit", "num_workers"}

# Makes the model; gets the backbone's hashes and the splits that it will be given.
MakeModel = Callable[[dict[str, str], Sequence[Examples]], nn.Module]


@dataclass
class TrainConfig:
    """Options that all trainings share. Defaults are the paper's for Qwen2.5 backbones."""

    output_dir: str = field(metadata={"help": "Folder of the run; the best model at its root."})
    data_dir: str = field(metadata={"help": "Processed data, made by scripts/run-data.sh."})
    base_model_path: str = field(metadata={"help": "Backbone's folder (safetensors)."})
    epochs: float = field(default=3.0, metadata={"help": "Passes over the training split."})
    batch_size: int = field(
        default=16, metadata={"help": "Responses an optimiser step sees, over all processes."}
    )
    micro_batch_size: int = field(
        default=8, metadata={"help": "Responses one device holds at once: memory, not results."}
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    scheduler: Literal["exponential", "linear", "cosine", "constant"] = field(
        default="exponential", metadata={"help": "Learning-rate schedule."}
    )
    lr_gamma: float = field(
        default=0.99, metadata={"help": "Decay an optimiser step, of --scheduler exponential."}
    )
    warmup_ratio: float = field(
        default=0.0, metadata={"help": "Share of the steps with a rising rate; not exponential."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient clipping; 0 for none."})
    precision: Precision = field(
        default="auto",
        metadata={"help": "auto: bf16 mixed precision on hardware made for it (GPU, AMX)."},
    )
    attention: Attention = field(
        default="sdpa",
        metadata={"help": "eager is the fastest for short texts on a CPU; memory is quadratic."},
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations: less memory, more time."}
    )
    eval_steps: float = field(
        default=0.1,
        metadata={"help": "Validate and save every N optimiser steps; below 1, a share of all."},
    )
    eval_tokens: int = field(
        default=TOKEN_BUDGET, metadata={"help": "Padded tokens a validation batch."}
    )
    best_metric: Literal["macro_f1", "full_auroc", "loss"] = field(
        default="macro_f1", metadata={"help": "Validation metric that picks the best checkpoint."}
    )
    logging_steps: int = field(default=10, metadata={"help": "Log every N optimiser steps."})
    save_total_limit: int = field(
        default=2, metadata={"help": "Checkpoints kept for --resume, the best included."}
    )
    num_workers: int = field(default=0, metadata={"help": "Processes that collate batches."})
    seed: int = field(default=42, metadata={"help": "Of heads, dropout and order."})
    resume: bool = field(
        default=False, metadata={"help": "Go on from the last checkpoint; start if there is none."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete an earlier run first."})

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

    def check_range(self, low: float, high: float, *names: str) -> None:
        """Raises InputError where an option is outside of low … high."""
        span = f">= {low}" if high == math.inf else f"in {low}…{high}"
        for name in names:
            value = getattr(self, name)
            if not (low <= value <= high and value < math.inf):
                raise InputError(f"--{name.replace('_', '-')}: {value} is not {span}")


def accumulation_steps(config: TrainConfig) -> int:
    """Returns how many micro-batches make the effective batch, on each process.

    Raises:
        InputError: The effective batch does not divide into whole micro-batches.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    micro = min(config.micro_batch_size, config.batch_size)
    if config.batch_size % (micro * world):
        raise InputError(
            f"--batch-size: {config.batch_size} is not a multiple of micro batch {micro} × {world}"
            " processes"
        )
    return config.batch_size // (micro * world)


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """Translates our options into the Trainer's."""
    device = default_device()
    return TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=min(config.micro_batch_size, config.batch_size),
        gradient_accumulation_steps=accumulation_steps(config),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        lr_scheduler_type="constant" if config.scheduler == "exponential" else config.scheduler,
        warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm,
        bf16=use_bf16(config.precision, device),
        use_cpu=device.type == "cpu",
        activation_checkpointing=config.gradient_checkpointing,
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.eval_steps,
        save_total_limit=config.save_total_limit,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{config.best_metric}",
        greater_is_better=config.best_metric != "loss",
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        disable_tqdm=False,
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=device.type == "cuda",
        report_to="none",
        seed=config.seed,
        data_seed=config.seed,
    )


def publish(trainer: DualTaskTrainer, folder: Path) -> None:
    """Puts the best model at the root of the run folder, config.json last.

    Every process calls it, since sharded weights are gathered from all; the first one writes.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):  # LoRA: plain weights, no adapter needed to load them
        model = model.merge_and_unload()
        weights = model.state_dict()
    else:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    partial = folder / ".best.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=weights)
    trainer.processing_class.save_pretrained(partial)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)
    partial.rmdir()


def run_training(config: TrainConfig, make_model: MakeModel, score_with: ScoreWith) -> None:
    """Trains, validates as it goes, and leaves the best checkpoint at the run's root.

    Args:
        config: The options.
        make_model: Makes the model; see `MakeModel`.
        score_with: The scorer whose partial detection is validated, of a model that has several.
    """
    began, folder = time.monotonic(), Path(config.output_dir)
    tokenizer = load_tokenizer(Path(config.base_model_path))
    data = load_processed(Path(config.data_dir), tokenizer)
    train, valid = load_examples(data, "train"), load_examples(data, "valid")
    record = start_record(config, data.summary())
    record["backbone"] = backbone_summary(Path(config.base_model_path))
    earlier = read_record(folder) if config.resume else None
    if earlier is None:
        refuse_overwrite(folder, config.overwrite, RECORD)
    else:
        check_same_run(folder, earlier, record, FREE_ON_RESUME)
        if earlier["status"] == "finished":
            print(f"{folder}: the run is finished already")
            return
        told = {name: earlier[name] for name in ("started", "argv", "git")}
        record["earlier_sessions"] = [*earlier.get("earlier_sessions", []), told]
    set_seed(config.seed)
    model = make_model(record["backbone"], (train, valid))
    record["parameters"] = parameter_counts(model)
    trainer = DualTaskTrainer(
        model=model,
        args=training_arguments(config),
        train_dataset=train,
        processing_class=tokenizer,
        valid=valid,
        effective_batch_size=config.batch_size,
        scheduler=config.scheduler,
        lr_gamma=config.lr_gamma,
        eval_tokens=config.eval_tokens,
        score_with=score_with,
    )
    if hasattr(model, "merge_and_unload") and (
        trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    ):
        raise InputError("--lora-rank: adapters cannot be merged into sharded weights; no FSDP")
    checkpoint = last_complete_checkpoint(folder) if earlier else None
    if trainer.is_world_process_zero():
        if earlier is None and folder.exists():
            shutil.rmtree(folder)  # --overwrite: only now that everything else is in place
        folder.mkdir(parents=True, exist_ok=True)
        remove_later_checkpoints(folder, checkpoint)
        write_record(folder, record)
        step = int(checkpoint.name.rpartition("-")[2]) + 1 if checkpoint else None
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        trainer.add_callback(TensorBoardCallback(writer))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    publish(trainer, folder)
    if trainer.is_world_process_zero():
        state = trainer.state
        write_record(
            folder,
            record,
            started=began,
            best={"step": state.best_global_step, f"valid_{config.best_metric}": state.best_metric},
            bf16=trainer.args.bf16,
            resumed_from=checkpoint.name if checkpoint else None,
            log=state.log_history,
        )
        print(f"best checkpoint: step {state.best_global_step}; model in {folder}")


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Counts all parameters and the trained ones."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "all": sum(size for size, _ in sizes),
        "trained": sum(size for size, trained in sizes if trained),
    }

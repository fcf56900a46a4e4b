"""The course of a training, the same for every row: options, Trainer, run folder."""

import os
import shutil
import time
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback

from data.splits import Examples, load_examples, load_processed
from data.tokenization import load_tokenizer
from model.options import ScoreWith
from train.options import TrainConfig
from train.trainer import DualTaskTrainer, last_checkpoint
from utils.device import default_device, use_bf16
from utils.files import InputError
from utils.run_record import claim, empty, refuse_taken, start_record, write_record

# Makes the model, from the backbone's hashes and the splits that it will be given.
MakeModel = Callable[[dict[str, str], Sequence[Examples]], nn.Module]
# Makes the Trainer and its model, from the run's record and the backbone's tokenizer.
MakeTrainer = Callable[[dict[str, Any], PreTrainedTokenizerFast], Trainer]


def training_arguments(
    config: TrainConfig, kind: type[TrainingArguments] = TrainingArguments, **more: Any
) -> TrainingArguments:
    """Translates our options into the Trainer's, and adds those that were passed on.

    Args:
        config: The options.
        kind: The Trainer's own class of options.
        more: Options that only this class has.

    Raises:
        InputError: The effective batch does not divide into whole micro-batches, or an option that
            was passed on does not exist or is set by one of ours.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    micro = min(config.micro_batch_size, config.batch_size)
    if config.batch_size % (micro * world):
        raise InputError(
            f"--batch-size: {config.batch_size} is not a multiple of micro batch {micro} × {world}"
            " processes"
        )
    device, picks = default_device(), config.best_metric != "last"
    ours = dict(
        output_dir=config.output_dir,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // (micro * world),
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
        load_best_model_at_end=picks,
        metric_for_best_model=f"eval_{config.best_metric}" if picks else None,
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
        **more,
    )
    return kind(**ours, **passed_on_arguments(config.passed_on, set(ours)))


def passed_on_arguments(words: Sequence[str], ours: set[str]) -> dict[str, Any]:
    """Reads the options of `TrainingArguments` among `words`, such as `--optim adafactor`.

    Raises:
        InputError: There is no such option, its value cannot be read, or it is one of `ours`.
    """
    parser = HfArgumentParser(TrainingArguments, allow_abbrev=False, add_help=False)
    for action in parser._actions:
        action.default = SUPPRESS

    def refuse(message: str) -> NoReturn:
        raise InputError(message)

    parser.error = refuse
    given, unknown = parser.parse_known_args(words)
    if unknown:
        raise InputError(f"unknown option {unknown[0]}; --help lists what there is")
    for name in vars(given):
        if name in ours:
            raise InputError(f"--{name}: an option of ours sets it; see --help")
    return vars(given)


def publish(trainer: Trainer, folder: Path) -> None:
    """Puts the best model, or the last, at the root of the run folder, config.json last.

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


def train_detector(config: TrainConfig, make_model: MakeModel, score_with: ScoreWith) -> None:
    """Trains a detector.

    Args:
        config: The options.
        make_model: Makes the model.
        score_with: The scorer whose partial detection is validated, of a model that has several.
    """

    def make_trainer(record: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Trainer:
        arguments = training_arguments(config)
        data = load_processed(Path(config.data_dir), tokenizer)
        train, valid = load_examples(data, "train"), load_examples(data, "valid")
        set_seed(config.seed)
        return DualTaskTrainer(
            config,
            score_with,
            model=make_model(record["backbone"], (train, valid)),
            args=arguments,
            train_dataset=train,
            eval_dataset=valid,
            processing_class=tokenizer,
        )

    run_training(config, make_trainer)


def run_training(config: TrainConfig, make_trainer: MakeTrainer) -> None:
    """Trains, validates as it goes, and leaves the best checkpoint at the run's root.

    Args:
        config: The options.
        make_trainer: Makes the Trainer; it begins with `training_arguments`.
    """
    folder, record = Path(config.output_dir), start_record(config, **config.inputs())
    began, is_first = time.monotonic(), int(os.environ.get("RANK", "0")) == 0
    with claim(folder) if is_first else nullcontext():
        earlier = refuse_taken(config, record)
        if earlier:
            told = {name: earlier[name] for name in ("started", "argv", "git")}
            record["earlier_sessions"] = [*earlier.get("earlier_sessions", []), told]
        # processes meet in `training_arguments`: none writes before all have looked
        trainer = make_trainer(record, load_tokenizer(Path(config.base_model_path)))
        model = trainer.model
        trained = model.num_parameters(only_trainable=True)
        record["parameters"] = {"all": model.num_parameters(), "trained": trained}
        if hasattr(model, "merge_and_unload") and (
            trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        ):
            raise InputError("--lora-rank: adapters cannot be merged into sharded weights; no FSDP")
        checkpoint = last_checkpoint(folder, is_first) if earlier else None
        if is_first:
            if not earlier:
                empty(folder)  # --overwrite: only now that everything else is in place
            write_record(folder, record)
            step = int(checkpoint.name.rpartition("-")[2]) + 1 if checkpoint else None
            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
            trainer.add_callback(TensorBoardCallback(writer))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        publish(trainer, folder)
        if is_first:
            state = trainer.state
            step, best = state.best_global_step, {f"valid_{config.best_metric}": state.best_metric}
            if config.best_metric == "last":
                step, best = state.global_step, {}
            write_record(
                folder,
                record,
                started=began,
                best={"step": step, **best},
                bf16=trainer.args.bf16,
                resumed_from=checkpoint.name if checkpoint else None,
                log=state.log_history,
            )
            kind = "last" if config.best_metric == "last" else "best"
            print(f"{kind} checkpoint: step {step}; model in {folder}")

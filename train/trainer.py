"""The Trainer: loss parts in the log, exact batches, validation by delay-k detection."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from hf_mtask_trainer import HfMultiTaskTrainer
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR
from transformers import Trainer

from data.batches import LengthGroupedSampler, collate, count_items
from data.splits import Examples
from evaluation.metrics import point_metrics
from evaluation.predict import predict
from evaluation.predictions import collect
from evaluation.protocol import choose_operating_points
from model.options import ScoreWith
from model.qwen_dual_task import LOSS_PARTS
from train.options import TrainConfig
from utils.files import InputError


class DualTaskTrainer(HfMultiTaskTrainer):
    """Trains a `QwenForDualTask`, or a model of the same `forward` with a holistic scorer alone.

    hf-mtask-trainer 0.0.5 keeps the loss parts (`additional_state`). Its `log` is replaced: it
    calls a function that transformers 5 removed, never gathers over processes and mixes training
    with evaluation.

    Args:
        config: The options.
        score_with: The scorer whose partial detection is validated.
        trainer_options: Passed on to the Trainer.
    """

    def __init__(self, config: TrainConfig, score_with: ScoreWith, **trainer_options: Any) -> None:
        # without this, a batch is sliced over all GPUs of one process and its losses are not ours
        trainer_options["args"]._n_gpu = min(trainer_options["args"].n_gpu, 1)
        super().__init__(data_collator=collate, **trainer_options)
        self.model_accepts_loss_kwargs = True
        self.config, self.score_with = config, score_with

    def _get_train_sampler(self, train_dataset: Examples | None = None) -> LengthGroupedSampler:
        lengths = self.train_dataset.lengths
        return LengthGroupedSampler(lengths, self.config.batch_size, self.args.data_seed)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Adds the paper's exponential decay to the Trainer's schedulers."""
        if self.config.scheduler == "exponential" and self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = ExponentialLR(optimizer, gamma=self.config.lr_gamma)
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Counts labelled tokens and responses of one optimiser step, over all processes: (2,)."""
        return self.accelerator.reduce(count_items(batch_samples).to(device), reduction="sum")

    def compute_loss(
        self, model, inputs, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ):
        """Computes the loss, checks that it is a number and notes its parts."""
        loss, output = super().compute_loss(model, inputs, True, num_items_in_batch)
        noted = {name: output[name].detach() for name in LOSS_PARTS if name in output}
        if not math.isfinite(loss.item()):
            parts = ", ".join(f"{name} {value.item()}" for name, value in noted.items())
            raise InputError(
                f"training step {self.state.global_step + 1}: the loss is not a number ({parts});"
                " a lower --learning-rate, or --precision fp32, may help"
            )
        # each micro-batch holds a share of the step's mean: the shares' mean times their number
        scale = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        del noted["loss"]  # the Trainer logs it itself
        self.additional_state.add_metrics(**{name: part * scale for name, part in noted.items()})
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, adding the loss parts' means since the last training entry."""
        if "loss" in logs:
            logs |= self.additional_state.get_metrics(gather_func=self.accelerator.gather)
            self.additional_state.clear()
        Trainer.log(self, logs, start_time)

    def evaluate(
        self, eval_dataset: Examples | None = None, ignore_keys=None, metric_key_prefix="eval"
    ) -> dict[str, float]:
        """Validates as the tests do: every response token scored, (θ, k) chosen on the split."""
        valid = eval_dataset or self.eval_dataset
        model = self.model_wrapped if self.is_fsdp_enabled else self.model
        scores = predict(
            model,
            valid,
            score_with=self.score_with,
            bf16=self.args.bf16,
            token_budget=self.config.eval_tokens,
            with_losses=True,
        )
        split = collect(valid, scores)
        points = choose_operating_points(split, split)
        full, point = points["full"], points.get("partial", points["full"])
        values = point_metrics(point.decide(split))
        kept = ("macro_f1", "false_alarm_rate", "mean_fraction_seen")
        values = {name: values[name] for name in kept} | {"theta": point.theta}
        values["full_auroc"] = point_metrics(full.decide(split))["auroc"]
        if point.k is not None:
            values["k"] = point.k
        values |= scores.losses
        logs = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs


def last_checkpoint(folder: Path, remove_broken: bool) -> Path | None:
    """Returns a run's newest complete checkpoint, or None; may remove the incomplete ones.

    The Trainer writes trainer_state.json last, so a checkpoint whose state does not parse was cut
    short by a kill.
    """
    complete = {}
    for path in folder.glob("checkpoint-[0-9]*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
            complete[state["global_step"]] = path
        except (OSError, ValueError, KeyError):
            if remove_broken:
                shutil.rmtree(path)
    return complete[max(complete)] if complete else None

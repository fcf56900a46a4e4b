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
from evaluation.decisions import (
    FULL_THETAS,
    MAX_K,
    THETAS,
    full_outcome,
    partial_outcome,
    select_full,
    select_partial,
)
from evaluation.metrics import point_metrics
from evaluation.predict import predict
from model.options import ScoreWith
from model.qwen_dual_task import LOSS_PARTS
from utils.files import InputError


class DualTaskTrainer(HfMultiTaskTrainer):
    """Trains a `QwenForDualTask`, or a model of the same `forward` with a holistic scorer alone.

    hf-mtask-trainer 0.0.5 keeps the loss parts (`additional_state`); its `log` calls a function
    that transformers 5 removed, never gathers over processes and mixes training with evaluation, so
    `log` is replaced here. The parts are handed over in `compute_loss`; the model knows nothing of
    the Trainer.

    Args:
        valid: Validation examples.
        effective_batch_size: Examples an optimiser step sees, over all processes.
        scheduler: "exponential" multiplies the learning rate by `lr_gamma` each optimiser step; any
            other name is a transformers scheduler, set in the training arguments.
        lr_gamma: See above.
        eval_tokens: Padded tokens of a validation batch.
        score_with: The scorer whose partial detection is validated.
        trainer_options: Passed on to the Trainer.
    """

    def __init__(
        self,
        *,
        valid: Examples,
        effective_batch_size: int,
        scheduler: str,
        lr_gamma: float,
        eval_tokens: int,
        score_with: ScoreWith,
        **trainer_options: Any,
    ) -> None:
        # without this, a batch is sliced over all GPUs of one process and its losses are not ours
        trainer_options["args"]._n_gpu = min(trainer_options["args"].n_gpu, 1)
        super().__init__(data_collator=collate, eval_dataset=valid, **trainer_options)
        self.model_accepts_loss_kwargs = True
        self.effective_batch_size = effective_batch_size
        self.scheduler, self.lr_gamma = scheduler, lr_gamma
        self.eval_tokens, self.score_with = eval_tokens, score_with

    def _get_train_sampler(self, train_dataset: Examples | None = None) -> LengthGroupedSampler:
        lengths = self.train_dataset.lengths
        return LengthGroupedSampler(lengths, self.effective_batch_size, self.args.data_seed)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Adds the paper's exponential decay to the Trainer's schedulers."""
        if self.scheduler == "exponential" and self.lr_scheduler is None:
            self.lr_scheduler = ExponentialLR(optimizer or self.optimizer, gamma=self.lr_gamma)
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
            token_budget=self.eval_tokens,
            with_losses=True,
        )
        label = valid.response_label
        truth = (valid.response_token_labels, label, valid.prompt_group)
        chosen: dict[str, float] = {"theta": select_full(scores.response_prob, label, FULL_THETAS)}
        outcome = full_outcome(scores.response_prob, *truth, chosen["theta"])
        chosen["full_auroc"] = point_metrics(outcome)["auroc"]
        if scores.token_probs is not None:
            chosen["theta"], chosen["k"] = select_partial(scores.token_probs, label, THETAS, MAX_K)
            outcome = partial_outcome(scores.token_probs, *truth, chosen["theta"], chosen["k"])
        values = point_metrics(outcome)
        kept = ("macro_f1", "false_alarm_rate", "mean_fraction_seen")
        values = {name: values[name] for name in kept} | chosen | scores.losses
        logs = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint that was written to its end, or None.

    The Trainer writes trainer_state.json last, so a checkpoint whose state does not parse was cut
    short by a kill.
    """
    found = []
    for path in Path(folder).glob("checkpoint-[0-9]*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
            found.append((state["global_step"], path))
        except (OSError, ValueError, KeyError):
            continue
    return max(found)[1] if found else None


def remove_later_checkpoints(folder: Path, last: Path | None) -> None:
    """Removes what a killed run left half-written behind its last complete checkpoint."""
    kept = int(last.name.rpartition("-")[2]) if last else -1
    for path in Path(folder).glob("checkpoint-[0-9]*"):
        if int(path.name.rpartition("-")[2]) > kept:
            shutil.rmtree(path)

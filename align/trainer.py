"""TRL's DPOTrainer with a weight for each token, and supervised fine-tuning as a row beside it.

TRL gives data order, reference and options; of its loss nothing is left, since it knows no weights.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from align.dataset import SIDES
from align.loss import dpo_loss, sft_loss
from align.measures import preferred
from align.options import AlignConfig
from data.batches import LengthGroupedSampler
from model.log_probs import answer_log_probs, log_probs_of

PER_TOKEN = ("weights", "reference")


@dataclass
class WeightedCollator(DataCollatorForPreference):
    """Adds weights and log ref of each token to TRL's batches; 0 outside of the answers."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns TRL's batch, and (2 × pairs, seq_len) of each."""
        batch = super().torch_call(examples)
        rows = [(side, example) for side in SIDES for example in examples]
        for name in PER_TOKEN:
            batch[name] = torch.zeros(batch["input_ids"].shape)
            for row, (side, example) in enumerate(rows):
                values = torch.tensor(example[f"{side}_{name}"])
                start = len(example["prompt_ids"])
                batch[name][row, start : start + len(values)] = values
        return batch


class PreferenceTrainer(DPOTrainer):
    """Trains a policy on pairs that `align.dataset.as_dataset` has made.

    Args:
        config: The options.
        options: Passed on to TRL's trainer.
    """

    def __init__(self, config: AlignConfig, **options: Any) -> None:
        self.config, tokenizer = config, options["processing_class"]
        # without this, a batch is sliced over all GPUs of one process, which TRL refuses
        options["args"]._n_gpu = min(options["args"].n_gpu, 1)
        collator = WeightedCollator(tokenizer.pad_token_id or tokenizer.eos_token_id or 0)
        super().__init__(data_collator=collator, **options)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # encoded by align.encoding, which knows where tokens lie in the answer

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # holds those of each token, which TRL would have added up

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        lengths = [
            len(row["prompt_ids"]) + max(len(row[f"{side}_ids"]) for side in SIDES)
            for row in self.train_dataset
        ]
        return LengthGroupedSampler(np.array(lengths), self.config.batch_size, self.args.data_seed)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes none: run.json tells how the policy was trained."""

    def _compute_loss(self, model, inputs: dict[str, Tensor], return_outputs: bool = False):
        answers = inputs["completion_mask"].bool()
        if self.config.method == "sft":
            half = len(answers) // 2
            names = ("input_ids", "attention_mask")
            policy = log_probs_of(model, *(inputs[name][:half] for name in names), answers[:half])
            return sft_loss(policy, answers[:half])
        policy = log_probs_of(model, inputs["input_ids"], inputs["attention_mask"], answers)
        reference, weights = inputs["reference"], inputs["weights"]
        chosen, rejected = ((policy - reference).detach() * answers).sum(dim=1).chunk(2)
        told = self._metrics["train"]
        told["rewards/margins"].append(self.beta * (chosen - rejected).mean().item())
        told["rewards/accuracies"].append((chosen > rejected).float().mean().item())
        return dpo_loss(policy, reference, weights, self.beta)

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys=None, metric_key_prefix="eval"
    ) -> dict[str, float]:
        """Validates: the method's loss, and how often the chosen answer gained on the other."""
        rows = list(eval_dataset or self.eval_dataset)
        texts = [(row["prompt_ids"] + row[f"{side}_ids"], len(row["prompt_ids"]))
                 for row in rows for side in SIDES]  # fmt: skip
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for number, values in answer_log_probs(
            self.model, texts, self.config.eval_tokens, self.args.bf16
        ):
            found[number] = values
        places = [(row, side) for row in rows for side in SIDES]
        reference, weights = (
            [np.array(row[f"{side}_{name}"]) for row, side in places]
            for name in ("reference", "weights")
        )
        ratios = np.array([(a - b).sum() for a, b in zip(found, reference, strict=True)])
        weighted = [(w * (a - b)).sum() for a, b, w in zip(found, reference, weights, strict=True)]
        margins = np.subtract(*np.array(weighted).reshape(-1, 2).T)
        lengths = np.array([len(one) for one in found])
        logs = {
            "loss": float(np.logaddexp(0, -self.beta * margins).mean()),
            "preference_accuracy": float(preferred(ratios).mean()),
            "normalised_accuracy": float(preferred(ratios / lengths).mean()),
            "log_ratio_chosen": float(ratios[0::2].mean()),
            "log_ratio_rejected": float(ratios[1::2].mean()),
        }
        if self.config.method == "sft":
            logs["loss"] = float(-np.mean([one.mean() for one in found[0::2]]))
        logs = {f"{metric_key_prefix}_{name}": value for name, value in logs.items()}
        Trainer.log(self, logs)  # TRL's would add what was noted in training, and forget it
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

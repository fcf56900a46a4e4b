"""A local text-classification checkpoint of Hugging Face: text or pair → probability of harm."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from data.batches import token_budget_batches
from model.loading import load_checkpoint
from utils.device import autocast, default_device, use_bf16
from utils.files import InputError
from utils.options import TOKEN_BUDGET, Precision

HARMFUL_NAMES = {"harmful", "toxic", "toxicity", "unsafe", "hate", "hateful", "offensive"}


class TextClassifier:
    """Gives each text's probability of harm.

    Args:
        folder: Checkpoint with safetensors, its tokenizer beside it.
        harmful_label: Name of its harmful class; "" takes the one whose name says so, or the last
            of one or two that nobody named.
        precision: Of the computation.
        option: The option that named the folder, for messages.
        max_length: Tokens of a text that are read, at the most; None reads what the model can.
        token_budget: Padded tokens a batch.

    Raises:
        InputError: The folder is no such checkpoint, or the class cannot be told.
    """

    def __init__(
        self,
        folder: Path,
        harmful_label: str,
        precision: Precision,
        option: str,
        max_length: int | None = None,
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self.folder, self.option, self.token_budget = Path(folder), option, token_budget
        self.model, self.tokenizer = load_checkpoint(
            self.folder, AutoModelForSequenceClassification, "text classifier", option
        )
        if self.tokenizer.pad_token is None:
            raise InputError(f"{option}: {folder}: its tokenizer has no padding token")
        places = positions(self.model) or self.tokenizer.model_max_length
        self.max_length = min(places, max_length or places)
        names = {index: str(name).lower() for index, name in self.model.config.id2label.items()}
        self.harmful = harmful_class(names, harmful_label)
        device = default_device()
        self.bf16 = use_bf16(precision, device)
        self.model.to(device)

    @property
    def harmful_name(self) -> str:
        """Name of the harmful class, as the checkpoint writes it."""
        return self.model.config.id2label[self.harmful]

    @torch.inference_mode()
    def score(
        self,
        texts: list[str],
        seconds: list[str] | None = None,
        description: str | None = None,
    ) -> np.ndarray:
        """Returns the probability of harm of each text, or pair, float [N].

        Args:
            texts: [N].
            seconds: [N] second texts of pairs; of a pair that is too long, the longer one is cut.
            description: Shows a progress bar with this text.
        """
        typed = seconds is not None and getattr(self.model.config, "type_vocab_size", 1) > 1
        encoded = self.tokenizer(
            texts,
            seconds,
            truncation=True,
            max_length=self.max_length,
            return_token_type_ids=typed,
        )
        columns = ["input_ids", "token_type_ids"] if typed else ["input_ids"]
        scores = np.empty(len(texts))
        lengths = np.array([max(len(ids), 1) for ids in encoded["input_ids"]])
        with tqdm(
            total=len(texts), desc=description, unit="response", disable=description is None
        ) as bar:
            for indices in token_budget_batches(lengths, self.token_budget):
                batch = self.tokenizer.pad(
                    {name: [encoded[name][index] for index in indices] for name in columns},
                    return_tensors="pt",
                ).to(self.model.device)
                with autocast(self.bf16, self.model.device):
                    logits = self.model(**batch).logits.float()  # (batch, classes)
                settings = self.model.config
                if (
                    settings.problem_type == "multi_label_classification"
                    or settings.num_labels == 1
                ):
                    probs = logits.sigmoid()
                else:
                    probs = logits.softmax(-1)
                scores[indices] = probs[:, self.harmful].cpu().numpy()
                bar.update(len(indices))
        if not np.isfinite(scores).all():
            raise InputError(f"{self.option}: {self.folder}: its scores are no numbers")
        return scores

    def count_cut(self, texts: list[str], seconds: list[str] | None = None) -> int:
        """Counts the texts, or pairs, that are longer than the model reads."""
        encoded = self.tokenizer(texts, seconds, truncation=False)["input_ids"]
        return sum(len(ids) > self.max_length for ids in encoded)


def harmful_class(names: dict[int, str], wanted: str) -> int:
    """Returns the number of the harmful class.

    Args:
        names: Of the classes, in lower case.
        wanted: See `TextClassifier`.

    Raises:
        InputError: Not one class is meant.
    """
    if wanted:
        found = [index for index, name in names.items() if name == wanted.lower()]
    else:
        found = [index for index, name in names.items() if name in HARMFUL_NAMES]
        if list(names.values()) in (["label_0"], ["label_0", "label_1"]):  # nobody named them
            found = [len(names) - 1]
    if len(found) != 1:
        there = ", ".join(names.values())
        raise InputError(f"--harmful-label: '{wanted}' names no one class; there are: {there}")
    return found[0]


def positions(model: PreTrainedModel) -> int | None:
    """Returns how many tokens a model has positions for; None where its config does not say."""
    places = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding) and table.padding_idx is not None:
        places = table.num_embeddings - table.padding_idx - 1  # RoBERTa counts from there
    return places

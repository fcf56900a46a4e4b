"""A local text-classification checkpoint of Hugging Face: text or pair → probability of harm."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

from data.batches import token_budget_batches
from model.loading import context_length, load_checkpoint
from model.options import Function
from utils.device import autocast, default_device, use_bf16
from utils.files import InputError
from utils.options import TOKEN_BUDGET, Precision

HARMFUL_NAMES = {"harmful", "toxic", "toxicity", "unsafe", "hate", "hateful", "offensive"}


class TextClassifier:
    """Gives each text's probability of harm.

    What spells a control token in a text is read as text.

    Args:
        folder: Checkpoint with safetensors, its tokenizer beside it.
        harmful_label: Name of its harmful class; "" takes the one of a name in `HARMFUL_NAMES`, or
            the last of one or two unnamed classes.
        option: The option that named the folder, for messages.
        max_length: Most tokens of a text that are read; None reads what the model can.
        token_budget: Tokens a batch.
        benign_label: Name of its benign class b, where all others are harmful: harm is 1 − P(b).
        function: Makes probabilities of logits. softmax: one class a text. sigmoid: each class by
            itself. auto: what config.json says, softmax where it says nothing.

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
        benign_label: str = "",
        function: Function = "auto",
    ) -> None:
        self.folder, self.option, self.token_budget = Path(folder), option, token_budget
        self.model, self.tokenizer = load_checkpoint(
            self.folder, AutoModelForSequenceClassification, "text classifier", option
        )
        config = self.model.config
        places = context_length(self.model, self.tokenizer)
        self.max_length = min(places, max_length or places)
        names = {index: str(name).lower() for index, name in config.id2label.items()}
        self.is_benign = bool(benign_label)
        self.harmful = _class_of_harm(names, harmful_label, benign_label)
        self.harmful_name = ("not " if benign_label else "") + config.id2label[self.harmful]
        apart = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self.function = ("sigmoid" if apart else "softmax") if function == "auto" else function
        if function == "auto" and config.problem_type is None and config.num_labels > 2:
            print(
                f"{self.folder}: config.json: field 'problem_type' does not say whether several of"
                f" its {config.num_labels} classes can be true at once; they are taken to exclude"
                " each other (softmax)"
            )
        # a decoder looks for the last token that is no padding; nothing is padded here
        if config.get_text_config().pad_token_id is None:
            config.get_text_config().pad_token_id = -1
        device = default_device()
        self.bf16 = use_bf16(precision, device)
        self.model.to(device)

    @torch.inference_mode()
    def score(
        self, texts: list[str], seconds: list[str] | None = None, description: str | None = None
    ) -> np.ndarray:
        """Returns the probability of harm of each text, or pair, float [N].

        A batch holds texts of one length, so that no score depends on what shares its batch.

        Args:
            texts: [N].
            seconds: [N] second texts of pairs; of a pair that is too long, the longer one is cut.
            description: Shows a progress bar with this text.
        """
        typed = seconds is not None and getattr(self.model.config, "type_vocab_size", 1) > 1
        encoded = self._encode(
            texts, seconds, truncation=True, max_length=self.max_length, return_token_type_ids=typed
        )
        columns = ["input_ids", "token_type_ids"] if typed else ["input_ids"]
        lengths = np.array([max(len(ids), 1) for ids in encoded["input_ids"]], dtype=int)
        scores = np.empty(len(texts))
        bar = tqdm(total=len(texts), desc=description, unit="response", disable=not description)
        for indices in token_budget_batches(lengths, self.token_budget, groups=lengths):
            batch = {}  # (batch, length) each
            for name in columns:
                rows = [encoded[name][index] or [0] for index in indices]
                batch[name] = torch.tensor(rows, device=self.model.device)
            with autocast(self.bf16, self.model.device):
                logits = self.model(**batch).logits.float()  # (batch, classes)
            probs = logits.sigmoid() if self.function == "sigmoid" else logits.softmax(-1)
            scores[indices] = probs[:, self.harmful].cpu().numpy()
            bar.update(len(indices))
        bar.close()
        if not np.isfinite(scores).all():
            raise InputError(f"{self.option}: {self.folder}: its scores are no numbers")
        return 1 - scores if self.is_benign else scores

    def count_cut(self, texts: list[str], seconds: list[str] | None = None) -> int:
        """Counts the texts, or pairs, that are longer than the model reads."""
        encoded = self._encode(texts, seconds, truncation=False)["input_ids"]
        return sum(len(ids) > self.max_length for ids in encoded)

    def _encode(self, texts: list[str], seconds: list[str] | None, **options):
        return self.tokenizer(texts, seconds, split_special_tokens=True, **options)


def _class_of_harm(names: dict[int, str], harmful: str, benign: str) -> int:
    """Returns the number of the class, of `names` in lower case, that harm is read from."""
    wanted = harmful or benign
    if wanted:
        found = [index for index, name in names.items() if name == wanted.lower()]
    else:
        found = [index for index, name in names.items() if name in HARMFUL_NAMES]
        if list(names.values()) in (["label_0"], ["label_0", "label_1"]):  # nobody named them
            found = [len(names) - 1]
    if len(found) != 1:
        option, there = "--benign-label" if benign else "--harmful-label", ", ".join(names.values())
        raise InputError(f"{option}: '{wanted}' names no one class; there are: {there}")
    return found[0]

"""A local text-classification checkpoint of Hugging Face judges each sentence by itself."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from utils.annotation import Annotation, Parsed, batched
from utils.files import InputError
from utils.predict import TOKEN_BUDGET, Precision, autocast, default_device, use_bf16
from utils.splits import token_budget_batches
from utils.tokenization import load_tokenizer

WINDOW = 256  # responses scored at once: sentences of like length share a batch
MAX_LENGTH = 512  # tokens of a sentence that are read
HARMFUL_NAMES = {"harmful", "toxic", "toxicity", "unsafe", "hate", "hateful", "offensive"}


class ClassifierAnnotator:
    """Calls a sentence harmful when the classifier's probability reaches a threshold.

    Args:
        folder: Checkpoint with safetensors, its tokenizer beside it.
        harmful_label: Name of its harmful class; "" takes the one whose name says so, or the last
            of one or two that nobody named.
        threshold: Least probability of harm.
        precision: Of the computation.

    Raises:
        InputError: The folder is no such checkpoint, or the class cannot be told.
    """

    def __init__(
        self, folder: Path, harmful_label: str, threshold: float, precision: Precision
    ) -> None:
        self.folder, self.threshold = Path(folder), threshold
        if not (self.folder / "config.json").is_file():
            raise InputError(f"--annotator-model: {folder}: no model folder (no config.json)")
        try:
            # tokenizer.json as it is: AutoTokenizer would replace it by the model type's own class
            if (self.folder / "tokenizer.json").is_file():
                self.tokenizer = load_tokenizer(self.folder)
            else:
                self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model, report = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"--annotator-model: {folder}: cannot be loaded: {reason}") from error
        if report["missing_keys"]:
            raise InputError(
                f"--annotator-model: {folder}: no text classifier, weights are missing, for one:"
                f" {min(report['missing_keys'])}"
            )
        if self.tokenizer.pad_token is None:
            raise InputError(f"--annotator-model: {folder}: its tokenizer has no padding token")
        places = getattr(self.model.config, "max_position_embeddings", MAX_LENGTH)
        self.max_length = min(MAX_LENGTH, places)
        self.harmful = self._harmful_class(harmful_label)
        device = default_device()
        self.bf16 = use_bf16(precision, device)
        self.model.to(device).eval()

    def annotate(self, records: Iterable[Parsed]) -> Iterator[Annotation]:
        """Annotates records in order."""
        for window in batched(records, WINDOW):
            yield from self._annotate(window)

    @torch.inference_mode()
    def score(self, sentences: list[str]) -> np.ndarray:
        """Returns each sentence's probability of harm, float [S]."""
        encoded = self.tokenizer(sentences, truncation=True, max_length=self.max_length)[
            "input_ids"
        ]
        scores = np.empty(len(sentences))
        lengths = np.array([max(len(ids), 1) for ids in encoded])
        for indices in token_budget_batches(lengths, TOKEN_BUDGET):
            batch = self.tokenizer.pad(
                {"input_ids": [encoded[index] for index in indices]}, return_tensors="pt"
            ).to(self.model.device)
            with autocast(self.bf16, self.model.device):
                logits = self.model(**batch).logits.float()  # (batch, classes)
            settings = self.model.config
            if settings.problem_type == "multi_label_classification" or settings.num_labels == 1:
                probs = logits.sigmoid()
            else:
                probs = logits.softmax(-1)
            scores[indices] = probs[:, self.harmful].cpu().numpy()
        if not np.isfinite(scores).all():
            raise InputError(f"--annotator-model: {self.folder}: its scores are no numbers")
        return scores

    def report(self) -> dict[str, Any]:
        """Returns model, class and threshold."""
        name = self.model.config.id2label[self.harmful]
        return {"model": self.folder.name, "harmful_class": name, "threshold": self.threshold}

    def _annotate(self, records: list[Parsed]) -> Iterator[Annotation]:
        scores = self.score([text for record in records for text in record.sentences])
        bounds = np.cumsum([len(record.sentences) for record in records])[:-1]
        for some in np.split(scores, bounds):
            yield Annotation((some >= self.threshold).astype(int).tolist())

    def _harmful_class(self, wanted: str) -> int:
        names = {index: str(name).lower() for index, name in self.model.config.id2label.items()}
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

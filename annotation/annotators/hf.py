"""A local text-classification checkpoint of Hugging Face judges each sentence by itself."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from annotation.records import WINDOW, Annotation, Parsed, batched
from model.text_classifier import TextClassifier
from utils.options import Precision

MAX_LENGTH = 512  # tokens of a sentence that are read


class ClassifierAnnotator:
    """Calls a sentence harmful when the classifier's probability reaches a threshold.

    Args:
        folder: Checkpoint with safetensors, its tokenizer beside it.
        harmful_label: See `TextClassifier`.
        threshold: Least probability of harm.
        precision: Of the computation.

    Raises:
        InputError: The folder is no such checkpoint, or the class cannot be told.
    """

    def __init__(
        self, folder: Path, harmful_label: str, threshold: float, precision: Precision
    ) -> None:
        self.threshold = threshold
        self.classifier = TextClassifier(
            folder, harmful_label, precision, "--annotator-model", MAX_LENGTH
        )

    def annotate(self, records: Iterable[Parsed]) -> Iterator[Annotation]:
        """Annotates records in order."""
        for window in batched(records, WINDOW):
            yield from self._annotate(window)

    def score(self, sentences: list[str]) -> np.ndarray:
        """Returns each sentence's probability of harm, float [S]."""
        return self.classifier.score(sentences)

    def report(self) -> dict[str, Any]:
        """Returns model, class and threshold."""
        return {
            "model": self.classifier.folder.name,
            "harmful_class": self.classifier.harmful_name,
            "threshold": self.threshold,
        }

    def _annotate(self, records: list[Parsed]) -> Iterator[Annotation]:
        scores = self.score([text for record in records for text in record.sentences])
        bounds = np.cumsum([len(record.sentences) for record in records])[:-1]
        for some in np.split(scores, bounds):
            yield Annotation((some >= self.threshold).astype(int).tolist())

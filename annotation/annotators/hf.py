"""A local text-classification checkpoint of Hugging Face judges each sentence by itself."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from annotation.cache import keep_labels
from annotation.options import ModelConfig
from annotation.records import Annotation, Annotator, ParsedResponse
from utils.options import Precision

MAX_LENGTH = 512  # tokens of a sentence that are read
CUT = f"sentences beyond {MAX_LENGTH} tokens were read in part"


@dataclass(kw_only=True)
class HfConfig(ModelConfig):
    """A local text classifier judges each sentence by itself."""

    annotator_threshold: float = 0.5
    """Least probability of a harmful sentence."""
    harmful_label: str = ""
    """Name of the harmful class where it cannot be told."""
    precision: Precision = "auto"
    """auto takes bf16 on hardware made for it."""

    scores_sentences = True
    shares = ("annotator_threshold",)

    def make_annotator(self) -> "ClassifierAnnotator":
        return ClassifierAnnotator(self)


class ClassifierAnnotator(Annotator):
    """Calls a sentence harmful when the classifier's probability reaches a threshold.

    Raises:
        InputError: The folder is no such checkpoint, or the class cannot be told.
    """

    def __init__(self, config: HfConfig) -> None:
        from model.text_classifier import TextClassifier

        self.config = config
        folder, option = Path(config.annotator_model), "--annotator-model"
        self.classifier = TextClassifier(
            folder, config.harmful_label, config.precision, option, MAX_LENGTH
        )

    def annotate(self, records: Iterable[ParsedResponse]) -> Iterator[Annotation]:
        return keep_labels(self.config, records, self._annotate)

    def score(self, sentences: list[str]) -> np.ndarray:
        return self.classifier.score(sentences)

    def report(self) -> dict[str, Any]:
        return {
            "model": self.classifier.folder.name,
            "harmful_class": self.classifier.harmful_name,
            "threshold": self.config.annotator_threshold,
        }

    def _annotate(self, records: list[ParsedResponse]) -> Iterator[Annotation]:
        scores = self.score([text for record in records for text in record.sentences])
        bounds = np.cumsum([len(record.sentences) for record in records])[:-1]
        for record, some in zip(records, np.split(scores, bounds), strict=True):
            labels = (some >= self.config.annotator_threshold).astype(int).tolist()
            yield Annotation(labels, CUT if self.classifier.count_cut(record.sentences) else None)

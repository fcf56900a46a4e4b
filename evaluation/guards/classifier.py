"""A text classifier that others trained, as a guard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluation.guards.dialogue import OPTION, Dialogue, Judged
from evaluation.predict import Scores
from model.text_classifier import TextClassifier
from utils.options import Precision


class ClassifierGuard:
    """A text classifier like HateBERT or ToxDectRoBERTa; arguments are those of `TextClassifier`.

    Args:
        text: What it reads. Of a pair that is too long, the longer text is cut.
    """

    def __init__(
        self,
        folder: Path,
        text: Literal["response", "pair"],
        precision: Precision,
        harmful_label: str = "",
        **options: Any,
    ) -> None:
        self.text = text
        self.classifier = TextClassifier(folder, harmful_label, precision, OPTION, **options)
        name, function = self.classifier.harmful_name, self.classifier.function
        self.about = {"text": text, "harmful_class": name, "function": function}

    def judge(self, dialogues: Sequence[Dialogue], description: str) -> Judged:
        """Scores complete responses."""
        texts, seconds = [dialogue.response for dialogue in dialogues], None
        if self.text == "pair":
            texts, seconds = [dialogue.prompt for dialogue in dialogues], texts
        probs = self.classifier.score(texts, seconds, description).astype(np.float32)
        return Judged(Scores(None, probs), self.classifier.count_cut(texts, seconds))

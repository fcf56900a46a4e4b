"""Multiple-instance learning: sentence labels from response labels alone; no model, no network.

A benign response is a bag of benign sentences; a harmful one holds at least one harmful sentence.
Starting from "all of them", the positives are refitted until they settle: in each harmful response,
the sentences that look worse than nearly all benign ones, and in any case the likeliest.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from annotation.duplicates import prompt_key
from annotation.options import BuildConfig
from annotation.records import WINDOW, Annotation, Annotator, ParsedResponse, batched
from data.terms import terms
from utils.files import InputError

FOLDS = 5
MAX_ROUNDS = 10
SETTLED = 0.01  # share of the candidates that may still change
MAX_SENTENCES = 300_000  # that are fitted on; bounds memory, see `_sample`


@dataclass
class MilConfig(BuildConfig):
    """Learnt from response labels alone by multiple-instance learning; no model, no network."""

    mil_false_positives: float = 0.05
    """Share of benign sentences that may look harmful; sets the threshold."""

    scores_sentences = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mil_false_positives < 1:
            raise InputError(f"--mil-false-positives: {self.mil_false_positives} is not in 0…1")

    def make_annotator(self) -> "MilAnnotator":
        return MilAnnotator(self.mil_false_positives)


class MilAnnotator(Annotator):
    """Learns which sentences make responses harmful from the training split.

    A sentence is labelled by models that were fitted without its prompt: a model repeats the labels
    of the sentences that it was fitted on.

    Args:
        false_positives: Share of benign sentences that may look harmful; sets the threshold.
    """

    def __init__(self, false_positives: float = 0.05) -> None:
        self.false_positives = false_positives

    def annotate(self, records: Iterable[ParsedResponse]) -> Iterator[Annotation]:
        """Annotates records in order; sentences of benign responses are benign by definition."""
        for window in batched(records, WINDOW):
            texts = [text for record in window for text in record.sentences]
            counts = [len(record.sentences) for record in window]
            features = self.vectorizer.transform(texts)
            scores = self._held_out(features, np.repeat([fold_of(one) for one in window], counts))
            unseen = np.repeat([record.split != "train" for record in window], counts)
            if unseen.any():  # no model has seen these
                scores[unseen] = self._mean(features[np.flatnonzero(unseen)])
            parts = np.split(scores, np.cumsum(counts)[:-1])
            for record, some in zip(window, parts, strict=True):
                harmful = (some > self.threshold) & (record.label == 1)
                yield Annotation(harmful.astype(int).tolist())

    def score(self, sentences: list[str]) -> np.ndarray:
        """Returns each sentence's probability of harm, the mean of all models, float [S].

        Nothing says here which prompt a sentence answers, so models that have seen it count too.
        """
        return self._mean(self.vectorizer.transform(sentences))

    def report(self) -> dict[str, Any]:
        return {
            "false_positives": self.false_positives,
            "threshold": self.threshold,
            "sentences_fitted": self.fitted,
            "rounds": len(self.changed),
            "changed_share_by_round": self.changed,
        }

    def fit(self, stream: Callable[[], Iterable[ParsedResponse]]) -> None:
        """Learns from the training split.

        Raises:
            InputError: It has too few prompts of both classes.
        """
        import pandas as pd
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
        from sklearn.pipeline import make_pipeline

        self.vectorizer = make_pipeline(
            HashingVectorizer(analyzer=terms, n_features=2**18, alternate_sign=False, norm=None),
            TfidfTransformer(sublinear_tf=True),
        )
        texts, label, bag, fold = self._sample(stream)
        self.fitted = len(texts)
        features = self.vectorizer.fit_transform(texts)
        candidate = label == 1
        positive = candidate.copy()
        self.changed: list[float] = []
        for _ in tqdm(range(MAX_ROUNDS), "fit", unit="round"):
            self._fit_folds(features, positive, bag, fold)
            scores = self._held_out(features, fold)
            # the same rate of benign sentences would be called harmful by mistake
            self.threshold = float(np.quantile(scores[~candidate], 1 - self.false_positives))
            chosen = scores > self.threshold
            chosen[pd.Series(scores).groupby(bag).idxmax()] = True  # each response's likeliest
            chosen &= candidate
            self.changed.append(float((chosen != positive).sum() / candidate.sum()))
            positive = chosen
            if self.changed[-1] < SETTLED:
                break

    def _sample(
        self, stream: Callable[[], Iterable[ParsedResponse]]
    ) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Collects training sentences: texts, response label, number of response, fold of prompt.

        Above `MAX_SENTENCES`, a share of the responses is taken, by a hash of their ids.
        """
        total = sum(len(record.sentences) for record in stream() if record.split == "train")
        share = min(1.0, MAX_SENTENCES / max(total, 1))
        texts: list[str] = []
        origins: list[tuple[int, int, int]] = []
        for number, record in enumerate(stream()):
            if record.split == "train" and _uniform(record.id) < share:
                texts += record.sentences
                origins += [(record.label, number, fold_of(record))] * len(record.sentences)
        label, bag, fold = np.array(origins, dtype=int).reshape(-1, 3).T
        for held_out in range(FOLDS):
            if len(np.unique(label[fold != held_out])) < 2:
                raise InputError("mil: the training split has too few prompts of both classes")
        return texts, label, bag, fold

    def _fit_folds(
        self, features: Any, positive: np.ndarray, bag: np.ndarray, fold: np.ndarray
    ) -> None:
        from sklearn.linear_model import LogisticRegression

        # responses count alike, however many sentences they bring
        _, member, size = np.unique(2 * bag + positive, return_inverse=True, return_counts=True)
        weight = 1 / size[member]
        self.models = []
        for held_out in range(FOLDS):
            rows = np.flatnonzero(fold != held_out)
            model = LogisticRegression(
                C=10.0, class_weight="balanced", solver="liblinear", random_state=0
            )
            self.models.append(model.fit(features[rows], positive[rows], weight[rows]))

    def _held_out(self, features: Any, fold: np.ndarray) -> np.ndarray:
        """Scores each sentence by the model that was fitted without its fold, float [sentences]."""
        scores = np.empty(len(fold))
        for number, model in enumerate(self.models):
            rows = np.flatnonzero(fold == number)
            if len(rows):
                scores[rows] = model.predict_proba(features[rows])[:, 1]
        return scores

    def _mean(self, features: Any) -> np.ndarray:
        return np.mean([model.predict_proba(features)[:, 1] for model in self.models], axis=0)


def fold_of(record: ParsedResponse) -> int:
    """Assigns a prompt to a fold, all its spellings to the same one."""
    return int(_uniform(f"fold {prompt_key(record.prompt or record.response)}") * FOLDS)


def _uniform(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64

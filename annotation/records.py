"""What passes between the steps of the annotation pipeline (annotation.pipeline)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NotRequired, TypeVar

import numpy as np

from data.fineharm import Record

# responses that a local model scores at once, so that texts of like length share a batch
WINDOW = 256

Item = TypeVar("Item")


@dataclass
class ParsedResponse:
    """A judged response split into S sentences of W words each. Places are in code points."""

    id: str
    prompt: str
    response: str  # untouched
    label: int  # 1 = the response is harmful
    split: str  # train, valid or test
    starts: list[int]  # [S] where each sentence starts in the response
    sentences: list[str]  # [S] without the white space around them
    words: list[list[str]]  # [S][W]
    word_starts: list[list[int]]  # [S][W] where each word starts in its sentence
    notional: list[list[int]]  # [S][W] 1 where the part of speech is a notional one
    spans: list[tuple[int, int]] | None = None  # [start, end) of what humans marked as harmful

    def labelled(
        self, sentence_labels: list[int], word_labels: list[list[int]]
    ) -> "AnnotatedRecord":
        """Returns the FineHarm record with these labels, [S] and [S][W]."""
        return AnnotatedRecord(
            id=self.id,
            prompt=self.prompt,
            response=self.response,
            sentences=self.sentences,
            sentence_labels=sentence_labels,
            words=self.words,
            word_labels=word_labels,
        )


@dataclass
class Annotation:
    """What an annotator says of one response."""

    labels: list[int] | None  # [S] 1 = the sentence is harmful; None where there is no verdict
    problem: str | None = (
        None  # why there is none (rejected.jsonl), or a flaw of the labels (stats)
    )


class AnnotatedRecord(Record):
    """A FineHarm record as this pipeline writes it."""

    # the annotator's sentence_labels and word_labels where the response's label replaced them
    annotator_labels: NotRequired[dict[str, list]]


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


class Annotator:
    """A way of annotating; each way says what it does otherwise."""

    def fit(self, stream: Callable[[], Iterable[ParsedResponse]]) -> None:
        """Learns from the parsed corpus, which `stream` gives anew at each call."""

    def annotate(self, records: Iterable[ParsedResponse]) -> Iterator[Annotation]:
        """Annotates a stream of records in order, holding no more than a window of them."""
        raise NotImplementedError

    def score(self, sentences: list[str]) -> np.ndarray:
        """Returns each sentence's probability of harm, float [S], judged by itself.

        Only where its options say `scores_sentences`.
        """
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        """Returns what stats.json tells of the annotator: settings, counts, costs."""
        return {}

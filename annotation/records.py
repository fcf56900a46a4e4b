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
    """A judged response, its sentences and words found. S sentences of W words each.

    Attributes:
        id: The row's id.
        prompt: What was asked.
        response: The untouched response.
        label: 1 = the response is harmful.
        split: train, valid or test.
        starts: [S] where each sentence starts in the response, in code points.
        sentences: [S] texts without the white space around them.
        words: [S][W] texts.
        word_starts: [S][W] where each word starts in its sentence, in code points.
        notional: [S][W] 1 where the part of speech is a notional one.
        spans: [start, end) of harmful characters in the response where humans marked them.
    """

    id: str
    prompt: str
    response: str
    label: int
    split: str
    starts: list[int]
    sentences: list[str]
    words: list[list[str]]
    word_starts: list[list[int]]
    notional: list[list[int]]
    spans: list[tuple[int, int]] | None = None


@dataclass
class Annotation:
    """What an annotator says of one response.

    Attributes:
        labels: [S] 1 = the sentence is harmful; None where the annotator came to no verdict.
        problem: Why there is none, for rejected.jsonl; or what the labels suffer from, counted in
            stats.json.
    """

    labels: list[int] | None
    problem: str | None = None


class AnnotatedRecord(Record):
    """A FineHarm record as this pipeline writes it.

    Attributes:
        annotator_labels: The annotator's sentence_labels and word_labels, where the response's
            label took their place.
    """

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

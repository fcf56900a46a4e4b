"""What passes between the steps of the annotation pipeline (annotation.pipeline)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NotRequired, Protocol, TypedDict, TypeVar

import numpy as np

from data.fineharm import Record

# responses that a local model scores at once, so that texts of like length share a batch
WINDOW = 256

Item = TypeVar("Item")


@dataclass
class Parsed:
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
        problem: Why there is none, for rejected.jsonl.
    """

    labels: list[int] | None
    problem: str | None = None


class AnnotatorLabels(TypedDict):
    """What an annotator said of a response whose label overruled it.

    Attributes:
        sentence_labels: [S] 1 = harmful.
        word_labels: [S][W] 1 = harmful.
    """

    sentence_labels: list[int]
    word_labels: list[list[int]]


class Finished(Record):
    """A FineHarm record as this pipeline writes it.

    Attributes:
        annotator_labels: Only where the response's label took the place of the annotator's.
    """

    annotator_labels: NotRequired[AnnotatorLabels]


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields the items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


class Annotator(Protocol):
    """The seam every way of annotating fits."""

    def annotate(self, records: Iterable[Parsed]) -> Iterator[Annotation]:
        """Annotates a stream of records in order, holding no more than a window of them."""

    def score(self, sentences: list[str]) -> np.ndarray:
        """Returns each sentence's probability of harm, float [S], judged by itself.

        Raises:
            InputError: The annotator has no such score.
        """

    def report(self) -> dict[str, Any]:
        """Returns what stats.json tells of the annotator: settings, counts, costs."""

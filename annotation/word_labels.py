"""Word labels from sentence labels."""

from collections.abc import Callable

import numpy as np

from annotation.options import WordRule
from annotation.records import ParsedResponse
from data.fineharm import every_word

SentenceScore = Callable[[list[str]], np.ndarray]


def label_words(
    record: ParsedResponse, sentence_labels: list[int], rule: WordRule, score: SentenceScore
) -> list[list[int]]:
    """Labels the words of a response, int [S][W]; `BuildConfig.word_rule` explains the rules.

    Args:
        record: The parsed response.
        sentence_labels: [S] 1 = harmful; "spans" does not look at them.
        rule: Which words are harmful.
        score: Returns each sentence's probability of harm; for "delete" alone.
    """
    if rule == "pos":
        return [
            [label * notional for notional in some]
            for label, some in zip(sentence_labels, record.notional, strict=True)
        ]
    if rule == "all":
        return every_word(sentence_labels, record.words)
    if rule == "spans":
        return [_touching(record, position) for position in range(len(record.words))]
    return [
        _needed(record, position, score) if label else [0] * len(record.words[position])
        for position, label in enumerate(sentence_labels)
    ]


def span_labels(record: ParsedResponse) -> list[int]:
    """Labels the sentences in which a human marked something, int [S]."""
    return [max(_touching(record, position)) for position in range(len(record.words))]


def _touching(record: ParsedResponse, position: int) -> list[int]:
    base, labels = record.starts[position], []
    for word, start in zip(record.words[position], record.word_starts[position], strict=True):
        start, end = base + start, base + start + len(word)
        labels.append(int(any(first < end and start < last for first, last in record.spans or ())))
    return labels


def _needed(record: ParsedResponse, position: int, score: SentenceScore) -> list[int]:
    sentence = record.sentences[position]
    pairs = zip(record.words[position], record.word_starts[position], strict=True)
    without = [sentence[:start] + sentence[start + len(word) :] for word, start in pairs]
    texts = [sentence, *filter(str.strip, without)]  # what is left of a lone word has no score
    if len(texts) == 1:
        return [1] * len(without)
    harm = dict(zip(texts, score(texts).tolist(), strict=True))
    return [int(text not in harm or harm[text] < harm[sentence]) for text in without]

"""The words that responses were stopped at, by parts of speech."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from spacy.tokens import Doc

from evaluation.decisions import Outcome
from evaluation.predictions import Predictions

# universal parts of speech, the notional ones first; what else spaCy says counts as other
TAGS = {
    "NOUN": "noun", "PROPN": "proper noun", "VERB": "verb", "ADJ": "adjective", "ADV": "adverb",
    "INTJ": "interjection", "AUX": "auxiliary", "PRON": "pronoun", "DET": "determiner",
    "ADP": "adposition", "CCONJ": "coordinating conj.", "SCONJ": "subordinating conj.",
    "PART": "particle", "NUM": "numeral", "PUNCT": "punctuation", "SYM": "symbol", "X": "other",
}  # fmt: skip


def words_at_stop(pieces: Sequence[str], stop: int, doc: Doc) -> tuple[str | None, list[str]]:
    """Returns the part of speech of the word at the stop, and those of all words before it.

    The word holds the token's last character that is no white space; it is None for a token of
    white space alone and for one that ends within a character.

    Args:
        pieces: [T], each token's text; joined they are the text of `doc`.
        stop: The token at which the response was stopped.
        doc: The response in words.
    """
    start = sum(map(len, pieces[:stop]))
    last = start + len(pieces[stop].rstrip()) - 1
    words = [word for word in doc if not word.is_space]
    if last < start:
        return None, [word.pos_ for word in words if word.idx + len(word) <= start]
    *before, at = (word.pos_ for word in words if word.idx <= last)
    return at, before


def tag_shares(tags: Iterable[str]) -> np.ndarray:
    """Returns the share of each of `TAGS` among parts of speech, [17]; zeros if there is none."""
    counts = Counter(tag if tag in TAGS else "X" for tag in tags)
    return np.array([counts[tag] for tag in TAGS]) / max(counts.total(), 1)


@dataclass
class StopWords:
    """Parts of speech in the harmful responses that a method stopped."""

    at: list[str]  # of the word at which each was stopped
    before: list[str]  # of all words before those
    wordless: int  # responses left out: stopped at white space or within a character


def stop_words(
    test: Predictions, outcome: Outcome, docs: Callable[[list[str]], Iterable[Doc]]
) -> StopWords:
    """Finds the words at which the harmful responses were stopped.

    Args:
        test: The test split.
        outcome: Of its partial detection.
        docs: Splits texts into words with parts of speech.
    """
    found = StopWords([], [], 0)
    stopped = np.flatnonzero((outcome.label == 1) & outcome.flagged).tolist()
    texts = ["".join(test.pieces[row]) for row in stopped]
    for row, doc in zip(stopped, docs(texts), strict=True):
        at, before = words_at_stop(test.pieces[row], int(outcome.released[row]), doc)
        if at is None:
            found.wordless += 1
        else:
            found.at.append(at)
            found.before += before
    return found

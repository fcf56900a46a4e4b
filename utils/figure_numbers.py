"""The numbers behind the figures, each from predictions.npz alone (names apart).

Thresholds are chosen on its validation split, what is shown is its test split.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from spacy.tokens import Doc

from evaluation.decisions import Outcome
from evaluation.predictions import FILE, METRICS, Predictions, load_predictions
from evaluation.protocol import choose_settings
from evaluation.runs import split_key, with_manner
from utils.files import InputError, read_json
from utils.rows import place_of
from utils.run_record import read_record

# universal parts of speech, the notional ones first; what else spaCy says counts as other
TAGS = {
    "NOUN": "noun", "PROPN": "proper noun", "VERB": "verb", "ADJ": "adjective", "ADV": "adverb",
    "INTJ": "interjection", "AUX": "auxiliary", "PRON": "pronoun", "DET": "determiner",
    "ADP": "adposition", "CCONJ": "coordinating conj.", "SCONJ": "subordinating conj.",
    "PART": "particle", "NUM": "numeral", "PUNCT": "punctuation", "SYM": "symbol", "X": "other",
}  # fmt: skip


@dataclass
class Method:
    """A detector and what it did to the test split.

    Attributes:
        folder: Where its test lies.
        row: Key of its row: "scm", "qwen-full", "tfidf", …
        method: What it is called.
        test: The test split.
        full_theta: Chosen on validation, as are θ and k.
        full: Full detection of the test split.
        theta, k: Of delay-k detection.
        partial: Partial detection of the test split.
        config: The test's options, where they are known.

    What belongs to a kind of detection that there is not is None.
    """

    folder: Path
    row: str
    method: str
    test: Predictions
    full_theta: float | None = None
    full: Outcome | None = None
    theta: float | None = None
    k: int | None = None
    partial: Outcome | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method, and how its scores were approximated."""
        return with_manner(self.method, self.config)


def judge(folder: Path, row: str, method: str, valid: Predictions, test: Predictions) -> Method:
    """Chooses thresholds on validation and applies them to the test split."""
    settings = choose_settings(valid, test)
    full, partial = settings.get("full"), settings.get("partial")
    judged = Method(folder, row, method, test)
    if full is not None:
        judged.full_theta, judged.full = full.theta, full.decide(test)
    if partial is not None:
        judged.theta, judged.k, judged.partial = partial.theta, partial.k, partial.decide(test)
    return judged


def load_method(folder: Path) -> Method:
    """Reads a test folder.

    Raises:
        InputError: A file or a field is missing.
    """
    result = read_json(folder / METRICS)
    for name in ("row", "method"):
        if name not in result:
            raise InputError(f"{folder / METRICS}: field '{name}' is missing")
    method = judge(folder, result["row"], result["method"], **load_predictions(folder / FILE))
    method.config = (read_record(folder) or {}).get("config", {})
    return method


def comparable(methods: Sequence[Method]) -> tuple[list[Method], list[str]]:
    """Picks the methods that may stand in one figure, in the order of the paper's table.

    Returns:
        Those tested on the same responses, labelled the same (of several such groups the one with
        most methods, then the first), each row and name once; and a line for each left out.
    """
    notes, groups = [], {}
    for method in methods:
        same = groups.setdefault(split_key(method.test), {})
        first = same.setdefault((method.row, method.name), method)
        if first is not method:
            notes.append(f"{method.folder}: left out, {first.folder} has the same row and name")
    largest = max(groups.values(), key=len)
    for same in groups.values():
        if same is not largest:
            notes += [
                f"{method.folder}: left out, it was tested on another split than"
                f" {next(iter(largest.values())).folder}"
                for method in same.values()
            ]
    return sorted(largest.values(), key=lambda method: place_of(method.row, method.method)), notes


def full_detectors(methods: Sequence[Method]) -> list[Method]:
    """Leaves out who has none, or whose another one shows: a model tested partially, too."""
    kept: list[Method] = []
    for method in methods:
        scores = method.test.response_prob
        if method.full is not None and not any(
            method.method == other.method or np.array_equal(scores, other.test.response_prob)
            for other in kept
        ):
            kept.append(method)
    return kept


def cumulative_share(values: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts up how many values there are so far.

    Args:
        values: float [N], none below 0.
        total: What is 100 %; at least N.

    Returns:
        x, rising from 0, and the share of `total` that is at most x; NaN if the total is 0.
    """
    x, counts = np.unique(values, return_counts=True)
    if not len(x) or x[0] > 0:
        x, counts = np.append(0, x), np.append(0, counts)
    return x, np.cumsum(counts) / (total or np.nan)


def stopped_over_seen(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Returns which share of all harmful responses is stopped once a share x of them is out.

    Returns:
        x from 0 to 1, and shares that end at the recall.
    """
    harmful = outcome.label == 1
    x, share = cumulative_share(outcome.seen[harmful & outcome.flagged], int(harmful.sum()))
    return (x, share) if x[-1] == 1 else (np.append(x, 1), np.append(share, share[-1]))


def leaked_tokens(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Returns which share of all harmful responses leaks at most x harmful tokens.

    A response that is not stopped leaks all it has.
    """
    harmful = outcome.label == 1
    return cumulative_share(outcome.leaked[harmful], int(harmful.sum()))


def trade_off(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns false-alarm rate and recall at each threshold, from the highest down.

    Args:
        score: float [N]; responses are flagged whose score reaches the threshold, never those of
            -inf (shorter than k). Equal scores are flagged together.
        label: int [N].

    Returns:
        Two float arrays, beginning at 0, 0: nothing flagged. NaN where a class is missing.
    """
    order = np.argsort(-score, kind="stable")
    ranked, harmful = score[order], np.asarray(label)[order] == 1
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    points = np.flatnonzero(last_of_tie & (ranked > -np.inf))
    rates = [
        np.append(0, np.cumsum(one)[points]) / (one.sum() or np.nan) for one in (~harmful, harmful)
    ]
    return rates[0], rates[1]


def words_at_stop(pieces: Sequence[str], stop: int, doc: Doc) -> tuple[str | None, list[str]]:
    """Finds the word at which a response was stopped, and those before it.

    Args:
        pieces: [T], each token's text; joined they are the text of `doc`.
        stop: The token at which it was stopped.
        doc: The response in words.

    Returns:
        The part of speech of the word that the token's last character lies in, white space apart
        (None for a token of white space alone, or of no whole character), and those of all words
        before that word (that token).
    """
    start = sum(map(len, pieces[:stop]))
    last = start + len(pieces[stop].rstrip()) - 1
    words = [word for word in doc if not word.is_space]
    if last < start:
        return None, [word.pos_ for word in words if word.idx + len(word) <= start]
    place = max(place for place, word in enumerate(words) if word.idx <= last)
    return words[place].pos_, [word.pos_ for word in words[:place]]


def tag_shares(tags: Iterable[str]) -> np.ndarray:
    """Returns the share of each of `TAGS` among parts of speech, [17]; zeros if there is none."""
    counts = Counter(tag if tag in TAGS else "X" for tag in tags)
    return np.array([counts[tag] for tag in TAGS]) / max(counts.total(), 1)


@dataclass
class StopWords:
    """Parts of speech in the harmful responses that a method stopped.

    Attributes:
        at: Of the word at which each was stopped.
        before: Of all words before those, of all responses together.
        wordless: Responses stopped at white space or within a character, which are left out.
    """

    at: list[str]
    before: list[str]
    wordless: int


def stop_words(method: Method, docs: Callable[[list[str]], Iterable[Doc]]) -> StopWords:
    """Finds the words at which the harmful responses were stopped.

    Args:
        method: Has partial detection.
        docs: Splits texts into words with parts of speech.
    """
    test, outcome, found = method.test, method.partial, StopWords([], [], 0)
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

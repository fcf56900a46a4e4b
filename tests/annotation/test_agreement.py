"""Agreement of two annotations."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotation.agreement import agreement, main
from annotation.options import CompareConfig


def test_agreement_by_hand():
    found = agreement([1, 1, 0, 0, 0], [1, 0, 1, 0, 0])
    expected = {"rate": 0.4, "other": 0.4, "P": 0.5, "R": 0.5, "F1": 0.5, "chance": 0.4}
    assert found == pytest.approx(expected | {"kappa": (0.6 - 0.52) / (1 - 0.52)})


@pytest.mark.filterwarnings("error")
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=9))
def test_what_has_no_meaning_is_no_number(pairs):
    first, second = zip(*pairs, strict=True)
    found = agreement(first, second)
    unknown = {name for name, value in found.items() if math.isnan(value)}
    expected = {"kappa"} if len({*first, *second}) == 1 else set()
    expected |= set() if any(second) else {"P"}
    expected |= set() if any(first) else {"R"}
    assert unknown == expected | (set() if any(first + second) else {"F1", "chance"})


def test_files_without_ids_are_compared_by_place(tmp_path, capsys):
    for name in "ab":
        record = {
            "prompt": "p", "response": "One. Two.", "sentences": ["One.", "Two."],
            "sentence_labels": [int(name == "a"), 0], "words": [["One", "."], ["Two", "."]],
            "word_labels": [[int(name == "a"), 0], [0, 0]],
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    main(CompareConfig(str(tmp_path / "a.json"), str(tmp_path / "b.json")))
    assert "1 records in both" in capsys.readouterr().out

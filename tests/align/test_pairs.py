"""Files of pairs: two forms, and what is wrong with them."""

import json

import pytest

from align.pairs import read_pairs
from tests.align.conftest import pair_row
from utils.files import InputError


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def safe_row(number: int, **changes) -> dict:
    """A row of PKU-SafeRLHF, with a field that nobody reads."""
    return {
        "prompt": f"How is number {number} made?",
        "response_0": f"First {number}.",
        "response_1": f"Second {number}.",
        "safer_response_id": number % 2,
        "better_response_id": 0,
    } | changes


def test_pairs_by_split(pairs):
    splits = read_pairs(pairs, "train", "valid", "test")
    assert {name: len(some) for name, some in splits.items()} == {
        "train": 16, "valid": 8, "test": 8
    }  # fmt: skip
    pair = splits["train"][1]
    assert [turn["role"] for turn in pair.turns] == ["user", "assistant", "user"]
    assert pair.question == "Tell me about the garden of number 1." and pair.answers[0] != ""


def test_the_folder_of_pku_saferlhf(tmp_path):
    write(tmp_path / "train.jsonl", *(safe_row(number) for number in range(60)))
    write(tmp_path / "test.jsonl", *(safe_row(number) for number in range(4)))
    splits = read_pairs(tmp_path, "train", "valid", "test")
    assert len(splits["train"]) + len(splits["valid"]) == 60 and 1 <= len(splits["valid"]) <= 20
    assert [pair.answers for pair in splits["test"][:2]] == [
        ("First 0.", "Second 0."), ("Second 1.", "First 1."),
    ]  # fmt: skip
    again = read_pairs(tmp_path)
    assert [pair.id for pair in again["valid"]] == [pair.id for pair in splits["valid"]]


@pytest.mark.parametrize("spoil, message", [
    (lambda row: row.pop("chosen"), "line 2: field 'chosen' is missing"),
    (lambda row: row.update(split="dev"), "line 2: field 'split'"),
    (lambda row: row.update(prompt=[]), "line 2: field 'prompt'"),
    (lambda row: row.update(rejected=row["chosen"]), "field 'rejected': is the chosen answer"),
    (lambda row: row["prompt"].append({"role": "assistant", "content": "x"}), "not the user's"),
    (lambda row: row["chosen"][0].update(role="user"), "field 'chosen.0.role'"),
    (lambda row: row["chosen"][0].update(content=""), "field 'chosen.0.content'"),
    (lambda row: row.update(id="train-0"), "field 'id': 'train-0' stands twice"),
])  # fmt: skip
def test_bad_pairs_are_named(tmp_path, spoil, message):
    rows = [pair_row(0, "train"), pair_row(1, "train")]
    spoil(rows[1])
    path = write(tmp_path / "pairs.jsonl", *rows)
    with pytest.raises(InputError, match=message) as raised:
        read_pairs(path)
    assert str(path) in str(raised.value)


def test_bad_rows_of_pku_saferlhf_are_named(tmp_path):
    write(tmp_path / "train.jsonl", safe_row(0), safe_row(1, safer_response_id=2))
    write(tmp_path / "test.jsonl", safe_row(0))
    with pytest.raises(InputError, match="train.jsonl: line 2: field 'safer_response_id'"):
        read_pairs(tmp_path)


def test_a_split_that_is_missing(tmp_path):
    path = write(tmp_path / "pairs.jsonl", pair_row(0, "train"))
    with pytest.raises(InputError, match="split 'valid' is missing"):
        read_pairs(path, "train", "valid")

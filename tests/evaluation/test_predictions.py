"""predictions.npz keeps everything that tables and figures need; θ for a share of false alarms."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.conformal import calibrate, conformal_theta
from evaluation.decisions import delay_k
from evaluation.metrics import by_length
from evaluation.predictions import SCORED_SPLITS, load_predictions, save_predictions, token_pieces
from evaluation.protocol import evaluate
from reports.summary import format_table
from tests.conftest import TOKENIZERS, random_split
from utils.files import InputError


@pytest.mark.parametrize("partial", [True, False])
def test_a_file_gives_back_what_was_saved(tmp_path, partial):
    splits = {name: random_split(8, seed, partial) for seed, name in enumerate(SCORED_SPLITS)}
    save_predictions(tmp_path / "p.npz", splits)
    again = load_predictions(tmp_path / "p.npz")
    for name, split in splits.items():
        for column, values in vars(split).items():
            found = getattr(again[name], column)
            if values is None:
                assert found is None
                continue
            for one, other in zip(found, values, strict=True):
                np.testing.assert_array_equal(one, other)
    if partial:
        results = [evaluate(**both, resamples=5, seed=0) for both in (splits, again)]
        assert json.dumps(results[0]) == json.dumps(results[1])


def test_a_spoilt_file_is_named(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(InputError, match=r"p.npz: cannot be read"):
        load_predictions(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"p.npz: is no predictions file"):
        load_predictions(path)
    np.savez(path, valid_ids=np.array(["a"]))
    with pytest.raises(InputError, match=r"p.npz: array 'valid_\w+' is missing"):
        load_predictions(path)


def test_a_damaged_file_is_named_in_one_line(tmp_path):
    """Bytes changed or cut off: what was saved is read, or an error says which file it is."""
    path = tmp_path / "p.npz"
    saved = {name: random_split(6, seed) for seed, name in enumerate(SCORED_SPLITS)}
    save_predictions(path, saved)
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    damaged = [whole[:length] for length in range(0, len(whole), len(whole) // 60)]
    for place in random.integers(len(whole), size=500):
        changed = whole[place] ^ int(random.integers(1, 256))
        damaged.append(whole[:place] + bytes([changed]) + whole[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        try:
            read = load_predictions(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
        else:
            for name, split in saved.items():
                np.testing.assert_array_equal(read[name].response_prob, split.response_prob)
                np.testing.assert_array_equal(read[name].token_probs[0], split.token_probs[0])
    assert refused > 300
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(InputError, match="array.npy: is no predictions file"):
        load_predictions(tmp_path / "array.npy")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_are_the_text(tokenizers, name):
    tokenizer = tokenizers(name)
    text = "It's 中文, a 👩‍👩‍👧 family:\n  naïve  code()"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids)
    joined = "".join(pieces)
    assert joined == text if "[UNK]" not in tokenizer.get_vocab() else joined
    # what a response adds does not depend on what comes after it
    assert token_pieces(tokenizer, ids[:5]) == pieces[:5]


def test_theta_by_hand():
    scores = np.array([0.1, 0.4, 0.2, 0.3])  # n = 4: the ranks are fifths
    assert 0.3 < conformal_theta(scores, 0.4) < 0.300001  # rank 3 of 5: two fifths lie above
    assert 0.4 < conformal_theta(scores, 0.2) < 0.400001
    assert conformal_theta(scores, 0.19) == np.inf  # four responses cannot promise that
    assert conformal_theta(np.array([]), 0.5) == np.inf
    assert conformal_theta(np.arange(9.0), 0.1) < np.inf  # 1 - 0.9 must not cost a rank
    short = np.array([-np.inf, -np.inf, -np.inf, 0.3])  # all but one are shorter than k
    assert 0 < conformal_theta(short, 0.4) < 1e-44  # a threshold that monitor.json can hold
    assert calibrate([np.array([0.9], np.float32)] * 3, np.zeros(3, int), 2, 0.5) < 1e-44


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40),
    target=st.floats(0.01, 0.99),
)
@settings(deadline=None)
def test_left_out_one_by_one_too_few_are_flagged(scores, target):
    """The argument of the proof: among n + 1 responses, at most α (n + 1) exceed their θ."""
    scores = np.array(scores, dtype=np.float32)
    flagged = sum(
        scores[one] >= conformal_theta(np.delete(scores, one), target) for one in range(len(scores))
    )
    assert flagged <= target * len(scores) + 1e-6


def test_coverage_by_simulation():
    """Mean false-alarm rate over many validation sets: at the target, not far below it."""
    random, target, k = np.random.default_rng(0), 0.1, 3
    rates = []
    for _ in range(300):
        lengths = random.integers(3, 20, 60)
        probs = [random.beta(1, 5, length).astype(np.float32) for length in lengths]
        label = np.zeros(60, int)
        theta = calibrate(probs[:30], label[:30], k, target)
        rates.append(np.mean([delay_k(one, theta, k) >= 0 for one in probs[30:]]))
    spread = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= target + 3 * spread
    assert np.mean(rates) >= 2 / 31 - 3 * spread  # rank 28 of 31: three thirty-firsts lie above


def test_choosing_the_detector_on_the_same_responses_weakens_the_promise():
    """The README's figures: benign scores are uniform, so θ leaves a false-alarm rate of 1 - θ."""
    random, rates = np.random.default_rng(0), {1: [], 4: [], 10: []}
    for candidates, found in rates.items():
        for _ in range(2000):
            benign = random.random((candidates, 100))
            harmful = np.minimum(random.random((candidates, 100)) + 0.6, 1)
            fp, tp = (benign >= 0.9).sum(axis=1), (harmful >= 0.9).sum(axis=1)
            macro_f1 = tp / (100 + tp + fp) + (100 - fp) / (300 - tp - fp)
            found.append(1 - min(1, conformal_theta(benign[macro_f1.argmax()], 0.05)))
    means = [np.mean(found) for found in rates.values()]
    assert means == pytest.approx([0.049, 0.058, 0.0625], abs=0.0015)  # three standard errors


def test_the_report_holds_the_calibrated_row():
    valid, test = random_split(200, 1), random_split(200, 2)
    result = evaluate(valid, test, 10, 0, target_false_alarm=0.2, target_k=2)
    row = result["partial_conformal"]
    assert row["k"] == 2 and row["chosen_on"] == "valid" and row["target_false_alarm"] == 0.2
    assert row["valid"]["false_alarm_rate"] <= 0.2
    table = format_table({"method": "SCM"} | result)
    assert table.count("strictly only for a detector that these did not choose") == 1
    assert "partial_conformal" not in evaluate(valid, test, 10, 0)


def test_length_quartiles_part_the_responses():
    split = random_split(101, 3)
    outcome = split.partial(0.5, 2)
    rows = by_length(outcome, split.lengths)
    assert len(rows) == 4 and sum(row["responses"] for row in rows) == 101
    assert all(one["to"] < other["from"] for one, other in zip(rows, rows[1:], strict=False))
    flagged = sum(row["false_alarm_rate"] * (row["responses"] - row["harmful"]) for row in rows)
    assert flagged == pytest.approx((outcome.flagged & (outcome.label == 0)).sum())
    short = [row for row in rows if row["to"] < 2]
    assert all(row["harmful_recall"] == 0 for row in short)  # one token never makes two


def test_equal_lengths_make_one_part():
    split = random_split(4)
    outcome = split.full(0.5)
    assert [row["responses"] for row in by_length(outcome, np.full(4, 7))] == [4]

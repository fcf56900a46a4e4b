"""Decisions and metrics, by hand and against brute force."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from evaluation.bootstrap import bootstrap, intervals, paired_test
from evaluation.decisions import (
    MISSED,
    Outcome,
    delay_k,
    full_outcome,
    kth_largest,
    macro_f1_table,
    partial_outcome,
    reaches,
    select_full,
    select_partial,
)
from evaluation.metrics import auroc_at_equal_length, metrics, point_metrics, stop_histogram

probabilities = st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.9, 1.0]), min_size=1, max_size=12)


def test_delay_k_by_hand():
    probs = np.array([0.1, 0.9, 0.2, 0.7, 0.9])
    assert [delay_k(probs, 0.7, k) for k in (1, 2, 3, 4)] == [1, 3, 4, MISSED]
    assert delay_k(probs, 0.95, 1) == MISSED


@given(probs=probabilities, theta=st.sampled_from([0.1, 0.5, 0.9]), k=st.integers(1, 5))
@settings(deadline=None)
def test_delay_k_is_a_running_count(probs, theta, k):
    count, expected = 0, MISSED
    for place, p in enumerate(probs):
        count += p >= theta
        if count == k:
            expected = place
            break
    assert delay_k(np.array(probs), theta, k) == expected
    reached = kth_largest([np.array(probs)], 5)[0, k - 1] >= theta
    assert reached == (expected != MISSED)


def test_a_score_at_the_threshold_is_judged_alike_everywhere():
    probs = [np.array([0.9], dtype=np.float32)]  # a hair below 0.9
    assert delay_k(probs[0], 0.9, 1) == MISSED
    assert not reaches(probs[0], 0.9).any()
    assert kth_largest(probs, 1)[0, 0] < 0.9
    assert macro_f1_table(probs, np.array([0]), [0.9], 1)[0, 0] == 0.5  # not flagged, benign


@given(probs=probabilities, more=probabilities, theta=st.sampled_from([0.1, 0.5, 0.9]))
@settings(deadline=None)
def test_what_comes_later_changes_no_stop(probs, more, theta):
    stop = delay_k(np.array(probs), theta, 2)
    longer = delay_k(np.array(probs + more), theta, 2)
    assert longer == stop if stop != MISSED else longer == MISSED or longer >= len(probs)


def make(label, flagged, score=None, seen=None) -> Outcome:
    count = len(label)
    return Outcome(
        label=np.array(label),
        flagged=np.array(flagged, bool),
        score=np.array(flagged if score is None else score, float),
        seen=np.ones(count) if seen is None else np.array(seen),
        leaked=np.arange(count),
        released=np.arange(count) * 2,
        group=np.arange(count),
    )


def test_metrics_by_hand():
    values = point_metrics(make([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], seen=[0.2, 0.4, 1, 0.1, 1]))
    assert values["harmful_precision"] == pytest.approx(2 / 3)
    assert values["harmful_recall"] == pytest.approx(2 / 3)
    assert values["benign_precision"] == values["benign_recall"] == 0.5
    assert values["macro_f1"] == pytest.approx((2 / 3 + 0.5) / 2)
    assert values["false_alarm_rate"] == 0.5 and values["miss_rate"] == pytest.approx(1 / 3)
    assert values["mean_fraction_seen"] == pytest.approx(0.3)  # detected harmful responses alone
    assert values["leaked_harmful_tokens"] == 1 and values["released_tokens"] == 2


def test_responses_too_short_for_k_tie_at_the_bottom():
    label, score = [1, 1, 0, 0], [0.9, -np.inf, -np.inf, -np.inf]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3]):
        outcome = make(np.array(label)[order], [0] * 4, np.array(score)[order])
        assert point_metrics(outcome)["auroc"] == pytest.approx(0.75)
        expected = average_precision_score(label, [1, 0, 0, 0])
        assert point_metrics(outcome)["auprc"] == pytest.approx(expected)


@given(data=st.data(), count=st.integers(2, 30))
@settings(deadline=None)
def test_metrics_agree_with_scikit_learn(data, count):
    pick = st.lists(st.integers(0, 1), min_size=count, max_size=count)
    label = np.array([0, 1] + data.draw(pick))
    score = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.4, 0.6, 0.8]),
                                        min_size=count + 2, max_size=count + 2)))  # fmt: skip
    repeat = np.array([1, 1] + data.draw(
        st.lists(st.integers(0, 3), min_size=count, max_size=count)))  # fmt: skip
    values = metrics(make(label, score >= 0.5, score), repeat[None])
    label, score = np.repeat(label, repeat), np.repeat(score, repeat)
    reference = precision_recall_fscore_support(label, score >= 0.5, labels=[0, 1], zero_division=0)
    for position, name in enumerate(("benign", "harmful")):
        for part, their in zip(("precision", "recall", "f1"), reference, strict=False):
            ours = values[f"{name}_{part}"][0]
            assert np.isnan(ours) or ours == pytest.approx(their[position])
            assert not np.isnan(ours) or part == "precision"  # undefined: nothing so called
    assert values["auroc"][0] == pytest.approx(roc_auc_score(label, score))
    assert values["auprc"][0] == pytest.approx(average_precision_score(label, score))


def test_one_class_leaves_what_needs_both_undefined():
    values = point_metrics(make([1, 1], [1, 0]))
    for name in ("auroc", "false_alarm_rate", "benign_recall"):
        assert np.isnan(values[name])
    assert values["harmful_recall"] == 0.5
    assert np.isnan(point_metrics(make([0, 0], [0, 0]))["macro_f1"])


def test_intervals_resample_prompts_not_responses():
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 400)
    flagged = np.where(random.random(400) < 0.8, label, 1 - label)
    alone = make(label, flagged)
    clustered = make(np.repeat(label[:40], 10), np.repeat(flagged[:40], 10))
    clustered.group = np.repeat(np.arange(40), 10)
    of_alone, of_clustered = (partial(metrics, outcome) for outcome in (alone, clustered))
    first = intervals(of_alone, alone.group, 500, seed=1)["accuracy"]
    wide = intervals(of_clustered, clustered.group, 500, seed=1)["accuracy"]
    assert first["low"] < first["value"] < first["high"]
    assert wide["high"] - wide["low"] > 2 * (first["high"] - first["low"])
    samples = bootstrap(of_alone, alone.group, 500, seed=1)
    for name, values in bootstrap(of_alone, alone.group, 500, seed=1, chunk=7).items():
        np.testing.assert_array_equal(values, samples[name])


def test_paired_test_by_hand():
    found = paired_test(1.5, np.array([-1.0, 1, 2, 3, np.nan]))
    assert found["value"] == 1.5 and found["p"] == pytest.approx(2 * (1 + 1) / (4 + 1))
    assert paired_test(-1.5, np.array([1.0, -1, -2, -3]))["p"] == found["p"]
    assert paired_test(2.0, np.full(99, 2.0))["p"] == pytest.approx(2 / 100)  # never 0
    nothing = paired_test(0.0, np.zeros(99))
    assert nothing == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert np.isnan(list(paired_test(np.nan, np.full(9, np.nan)).values())).all()


def test_detectors_of_the_same_responses_share_their_samples():
    """So the difference of two that are wrong about one response each varies by those two alone."""
    label = np.arange(40) % 2
    one, other = (
        make(label, np.where(np.arange(40) == wrong, 1 - label, label)) for wrong in (0, 2)
    )
    samples = [
        bootstrap(lambda w, of=outcome: metrics(of, w), outcome.group, 50, seed=3)["accuracy"]
        for outcome in (one, other)
    ]
    assert len(samples[0]) == 50 and (samples[0] != samples[1]).any()
    again = bootstrap(lambda w: {"counts": w[:, 2] - w[:, 0]}, one.group, 50, seed=3, chunk=7)
    np.testing.assert_allclose(samples[0] - samples[1], again["counts"] / 40, atol=1e-12)


def test_auroc_at_equal_length_by_hand():
    lengths = np.array([1, 1, 1, 9, 9])
    outcome = make([1, 0, 0, 1, 0], [1] * 5, score=[0.5, 0.4, 0.6, 0.3, 0.2])
    # short: one of two pairs is right; long: the only one
    assert auroc_at_equal_length(outcome, lengths) == pytest.approx([2 / 3])
    weights = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 2, 1], [0, 1, 1, 0, 1]])
    expected = [1 / 2, (1 + 2) / (2 + 2), np.nan]
    np.testing.assert_allclose(auroc_at_equal_length(outcome, lengths, weights), expected)
    # a score that is the length ranks well, and says nothing among equals
    label = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    lengths = np.array([1, 1, 1, 1, 9, 9, 9, 9])
    outcome = make(label, label, score=lengths)
    assert point_metrics(outcome)["auroc"] == 0.75
    assert auroc_at_equal_length(outcome, lengths) == 0.5
    assert np.isnan(auroc_at_equal_length(make([0, 0], [1, 0]), np.array([3, 4]))).all()


@given(rows=st.lists(st.tuples(probabilities, st.integers(0, 1)), min_size=2, max_size=10))
@settings(deadline=None)
def test_the_table_of_all_thresholds_is_what_single_decisions_give(rows):
    probs = [np.array(some) for some, _ in rows]
    label = np.array([one for _, one in rows])
    thetas = (0.5, 0.7, 0.9)
    table = macro_f1_table(probs, label, thetas, 4)
    empty = [np.zeros(len(some)) for some in probs]
    for row, theta in enumerate(thetas):
        for k in range(1, 5):
            outcome = partial_outcome(probs, empty, label, np.arange(len(label)), theta, k)
            value = point_metrics(outcome)["macro_f1"]
            if not np.isnan(value):
                assert table[row, k - 1] == pytest.approx(value)
            assert (outcome.score >= theta).tolist() == outcome.flagged.tolist()


def test_selection_prefers_the_earlier_stop_then_fewer_alarms():
    probs = [np.array([0.95, 0.95]), np.array([0.1, 0.1])]
    assert select_partial(probs, np.array([1, 0]), (0.5, 0.6, 0.9), 5) == (0.9, 1)
    assert select_full(np.array([0.9, 0.2]), np.array([1, 0]), (0.1, 0.3, 0.5, 0.7)) == 0.5


def test_the_whole_response_and_the_last_step_are_one_decision():
    """Seen to its end, a response that never fires counts as seen in full."""
    labels = [np.array([0, 1, 1]), np.array([0, 0])]
    probs = [np.array([0.1, 0.9, 0.9]), np.array([0.2, 0.1])]
    outcome = partial_outcome(probs, labels, np.array([1, 0]), np.array([0, 1]), 0.5, 2)
    assert outcome.seen.tolist() == [1.0, 1.0] and outcome.flagged.tolist() == [True, False]
    assert outcome.leaked.tolist() == [1, 0] and outcome.released.tolist() == [2, 2]
    whole = full_outcome(np.array([0.9, 0.1]), labels, np.array([1, 0]), np.array([0, 1]), 0.5)
    assert whole.leaked.tolist() == [2, 0]


def test_stop_histogram_has_the_papers_bins():
    seen = [0.05, 0.1, 0.11, 0.3, 0.31, 0.5, 0.51, 1.0, 0.2]
    outcome = make([1] * 8 + [0], [1] * 9, seen=seen)
    assert (stop_histogram(outcome) * 8).tolist() == [2, 1, 1, 1, 1, 2]
    assert stop_histogram(make([1, 0], [0, 0])).tolist() == [0] * 6

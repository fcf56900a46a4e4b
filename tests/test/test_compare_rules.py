"""Rules on the same scores: outcomes by hand, equal false alarms, the command."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.conformal import conformal_theta
from evaluation.decisions import MISSED
from evaluation.metrics import point_metrics
from evaluation.predictions import Predictions
from monitor.rules import RULES, DelayK, Rule, trace
from test.compare_rules import (
    FAMILIES,
    at_equal_false_alarms,
    choose_shape,
    measure_rules,
    outcome_at,
    running_maxima,
    statistics_of,
)
from test.options import RulesConfig
from test.rules import main
from tests.conftest import random_split, run, stop_of
from tests.monitor.test_rules import rules
from tests.runs import write_run
from utils.files import InputError
from utils.run_record import FinishedAlready

INF = math.inf
NAIVE = DelayK(1)


def split_of(*rows: tuple[int, list[float]]) -> Predictions:
    """Predictions of (label, token scores), a prompt each; all tokens carry their label."""
    probs = [np.array(some, dtype=np.float32) for _, some in rows]
    label = np.array([one for one, _ in rows])
    return Predictions(
        ids=[f"r{number}" for number in range(len(rows))],
        label=label,
        group=np.arange(len(rows)),
        token_labels=[np.full(len(p), one, np.int8) for one, p in zip(label, probs, strict=True)],
        pieces=[["x"] * len(p) for p in probs],
        response_prob=np.array([p[-1] for p in probs]),
        token_probs=probs,
    )


def test_an_outcome_by_hand():
    split = split_of((1, [0.1, 0.9, 0.2, 0.9]), (1, [0.1, 0.2]), (0, [0.9]), (0, [0.2, 0.1, 0.6]))
    outcome = outcome_at(running_maxima(DelayK(1), split.token_probs), split, 0.5)
    assert outcome.flagged.tolist() == [True, False, True, True]
    assert outcome.released.tolist() == [1, 2, 0, 2] and outcome.leaked.tolist() == [1, 2, 0, 0]
    assert outcome.seen.tolist() == [0.5, 1, 1, 1]
    at_it = outcome_at(running_maxima(DelayK(1), split.token_probs), split, float(np.float32(0.9)))
    assert at_it.flagged.tolist() == [True, False, True, False]  # a score at the threshold stops
    # harmful: 1 of 4 and 2 of 2 tokens; the second counts twice
    weights = np.array([[1, 1, 1, 1], [1, 2, 1, 1]])
    values = statistics_of(outcome, split.lengths)(weights)
    assert values["released_share"] == pytest.approx([(0.25 + 1) / 2, (0.25 + 2) / 3])


def test_the_gap_between_lengths_by_hand():
    """Four lengths, two benign responses each: none, one, one and both are stopped."""
    low, high = [0.1], [0.9]
    rows = [(0, part * length) for length, parts in
            enumerate([(low, low), (low, high), (high, low), (high, high)], 1)
            for part in parts]  # fmt: skip
    split = split_of(*rows, (1, high * 4))
    outcome = outcome_at(running_maxima(DelayK(1), split.token_probs), split, 0.5)
    statistics = statistics_of(outcome, split.lengths)
    assert statistics(np.ones((1, 9)))["length_gap"] == pytest.approx([1.0])
    # a part without benign responses in a sample does not count; 1/2 and 1 remain
    assert statistics(np.array([[0, 0, 1, 1, 1, 1, 1, 0, 1]]))["length_gap"] == pytest.approx([0.5])
    with np.errstate(all="raise"):
        assert np.isnan(statistics(np.array([[0] * 8 + [1]]))["length_gap"]).all()
        assert np.isnan(statistics(np.array([[1] * 8 + [0]]))["released_share"]).all()


@given(rule=rules, theta=st.floats(0.01, 3), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_running_maxima_hold_every_stop(rule, theta, seed):
    split = random_split(10, seed)
    outcome = outcome_at(running_maxima(rule, split.token_probs), split, theta)
    stops = [stop_of(rule, theta, probs) for probs in split.token_probs]
    assert np.where(outcome.flagged, outcome.released, MISSED).tolist() == stops
    assert (outcome.score >= theta).tolist() == outcome.flagged.tolist()
    if isinstance(rule, DelayK):
        expected = split.partial(theta, rule.k)
        for name, values in vars(expected).items():
            np.testing.assert_array_equal(getattr(outcome, name), values)


def at_equal(split: Predictions, target: float, *weights: list[int], rule: Rule = NAIVE):
    """What a rule does at equal false alarms, for rows of weights; default one row of ones."""
    maxima = running_maxima(rule, split.token_probs)
    statistics = at_equal_false_alarms(maxima, split, target)
    return statistics(np.array(weights or [[1] * len(split)]))


BENIGN = [(0, [0.2]), (0, [0.4]), (0, [0.6]), (0, [0.8])]
HARMFUL = [(1, [0.1, 0.7, 0.9, 0.9]), (1, [0.5])]


def test_equal_false_alarms_by_hand():
    """Above 0.6 one benign response is stopped; the harmful ones: after 1 of 4 tokens, and not."""
    values = at_equal(split_of(*BENIGN, *HARMFUL), 0.25)
    assert values["false_alarm_rate"] == pytest.approx([0.25])
    assert values["miss_rate"] == pytest.approx([0.5])
    assert values["mean_fraction_seen"] == pytest.approx([2 / 4])
    assert values["released_share"] == pytest.approx([(1 / 4 + 1) / 2])


def test_between_two_thresholds_half_the_streams_have_the_lower():
    """Above 0.4 two are stopped, and the other harmful one at its first and only token."""
    values = at_equal(split_of(*BENIGN, *HARMFUL), 0.375)
    assert values["false_alarm_rate"] == pytest.approx([0.375])
    assert values["miss_rate"] == pytest.approx([(0.5 + 0) / 2])
    # one response detected at the upper threshold, two at the lower
    assert values["mean_fraction_seen"] == pytest.approx([(2 / 4 + (2 / 4 + 1)) / (1 + 2)])
    assert values["released_share"] == pytest.approx([((1 / 4 + 1) / 2 + (1 / 4 + 0) / 2) / 2])


def test_ties_of_benign_responses_are_not_stopped_together():
    """Above 0.6 none is stopped, above 0.2 three: the lower threshold for two streams of three."""
    split = split_of(*[(0, [0.6])] * 3, (0, [0.2]), (1, [0.6, 0.9, 0.1]))
    values = at_equal(split, 0.5)
    assert values["false_alarm_rate"] == pytest.approx([0.5])
    assert values["released_share"] == pytest.approx([1 / 3 * 1 / 3 + 2 / 3 * 0])  # tied with them
    assert values["mean_fraction_seen"] == pytest.approx([1 / 3 * 2 / 3 + 2 / 3 * 1 / 3])
    every = at_equal(split_of(*[(0, [0.6])] * 4, (1, [0.6, 0.9])), 0.5)
    # the lower threshold is below all statistics: it stops at the first token
    assert every["false_alarm_rate"] == every["released_share"] * 2 == pytest.approx([0.5])


def test_responses_too_short_for_a_rule_tie_below_every_score():
    """Three benign responses and a harmful one have no second token."""
    short = [(0, [0.9]), (0, [0.9]), (0, [0.1])]
    split = split_of(*short, (0, [0.5, 0.5]), (1, [0.7] * 4), (1, [0.8]))
    values = at_equal(split, 0.25, rule=DelayK(2))
    assert values["released_share"] == pytest.approx([(1 / 4 + 1) / 2])
    values = at_equal(split, 0.5, rule=DelayK(2))  # a third of the streams is stopped at once
    assert values["false_alarm_rate"] == pytest.approx([0.5])
    assert values["released_share"] == pytest.approx([2 / 3 * (1 / 4 + 1) / 2])


def test_every_sample_has_a_threshold_of_its_own():
    split = split_of(*BENIGN, *HARMFUL)
    # 0.6 is not in the sample: above 0.4 one of four is stopped
    values = at_equal(split, 0.25, [1, 2, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1])
    assert values["false_alarm_rate"] == pytest.approx([0.25, 0.25])
    assert values["released_share"] == pytest.approx([(1 / 4 + 0) / 2, (1 / 4 + 1) / 2])
    # 0.8 counts three times: above 0.8 for two streams of three, above 0.4 for the third
    values = at_equal(split, 0.25, [0, 1, 0, 3, 1, 1])
    assert values["released_share"] == pytest.approx([2 / 3 * 3 / 4 + 1 / 3 * 1 / 8])


def test_equal_false_alarms_of_no_response_are_undefined():
    split = split_of(*BENIGN, *HARMFUL)
    with np.errstate(all="raise"):
        none = at_equal(split, 0.25, [0, 0, 0, 0, 1, 1])
        assert all(np.isnan(value).all() for value in none.values()) and len(none) == 4
        none = at_equal(split, 0.25, [1, 1, 1, 1, 0, 0])
        assert none.pop("false_alarm_rate") == pytest.approx([0.25])
        assert all(np.isnan(value).all() for value in none.values())
        low = at_equal(split_of(*BENIGN, (1, [0.1, 0.1])), 0.25)
        assert low["released_share"] == low["miss_rate"] == 1
        assert np.isnan(low["mean_fraction_seen"])


@given(
    rule=rules, target=st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.75]), seed=st.integers(0, 20),
    weights=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_a_weight_is_a_number_of_copies(rule, target, seed, weights):
    split = random_split(12, seed)
    split.token_probs = [np.round(probs, 1) for probs in split.token_probs]  # ties
    copies = np.repeat(np.arange(12), weights)
    copied = split_of(*[(int(split.label[one]), split.token_probs[one]) for one in copies])
    if set(copied.label.tolist()) == {0, 1}:
        found = at_equal(split, target, weights, rule=rule)
        assert found["false_alarm_rate"] == pytest.approx([target])
        for name, value in at_equal(copied, target, rule=rule).items():
            np.testing.assert_allclose(found[name], value, atol=1e-9)


def test_rules_are_measured_on_the_same_samples():
    """Of two harmful prompts one rule lets out a and b, the other half a point more."""

    def releasing(*shares: float):
        return lambda weights: {"released_share": weights @ np.array(shares) / weights.sum(axis=1)}

    rules = {"delay-k": releasing(0.1, 0.3), "cusum": releasing(0.15, 0.35)}
    found = measure_rules(rules, ["released_share"], np.arange(2), 99, seed=0)
    one, other = (found[name]["test"]["released_share"] for name in rules)
    assert one == pytest.approx({"value": 0.2, "low": 0.1, "high": 0.3})
    assert other == pytest.approx({"value": 0.25, "low": 0.15, "high": 0.35})
    against = found["cusum"]["against"]["released_share"]
    assert against == pytest.approx({"value": 0.05, "low": 0.05, "high": 0.05, "p": 2 / 100})
    assert found["delay-k"]["against"]["released_share"] == {
        "value": 0,
        "low": 0,
        "high": 0,
        "p": 1,
    }


def test_the_shape_that_releases_least_is_taken(tmp_path):
    """Benign responses have one high token each, harmful ones two: k = 2 tells them apart."""
    benign = [(0, [0.1, 0.9, 0.1])] * 9
    split = split_of(*benign, (1, [0.8, 0.8, 0.8, 0.8]), (1, [0.1, 0.8, 0.8, 0.8]))
    shapes = {
        rule: running_maxima(rule, split.token_probs) for rule in (DelayK(1), DelayK(2), DelayK(3))
    }
    rule, theta, on_valid = choose_shape(shapes, split, 0.1, tmp_path)
    assert rule == DelayK(2) and 0.1 < theta < 0.1001
    assert on_valid["false_alarm_rate"] == 0 and on_valid["released_share"] == 0.375
    with pytest.raises(InputError, match="9 benign validation responses promise .* it takes 19"):
        choose_shape(shapes, split, 0.05, tmp_path)


@pytest.fixture(scope="module")
def metrics_dir(tmp_path_factory):
    """What a test of SCM leaves behind."""
    folder = tmp_path_factory.mktemp("metrics") / "scm"
    return write_run(folder, valid=random_split(60, 0), test=random_split(60, 1))


@pytest.mark.slow
def test_the_comparison_agrees_with_its_predictions(metrics_dir, tmp_path):
    words = (str(metrics_dir), "--output-dir", str(tmp_path / "out"), "--targets", "0.1", "0.3")
    shown = run("bash", "scripts/compare-rules.sh", *words, "--bootstrap", "50").stdout
    folder = tmp_path / "out"
    assert (folder / "rules.md").read_text() in shown and "Dependence on length" in shown
    result = json.loads((folder / "rules.json").read_text())
    assert [(line["target"], line["family"]) for line in result["rules"]] == [
        (target, family) for target in (0.1, 0.3) for family in FAMILIES
    ]
    valid, test = (random_split(60, seed) for seed in range(2))
    untied = set()
    for line in result["rules"]:
        rule = RULES.get(line["family"], DelayK)(**line["shape"])
        assert rule in FAMILIES[line["family"]]
        highest = [trace(rule, probs).max() for probs in valid.token_probs]
        theta = conformal_theta(np.array(highest)[valid.label == 0], line["target"])
        assert line["threshold"] == theta
        stops = np.array([stop_of(rule, theta, probs) for probs in test.token_probs])
        released = np.where(stops == MISSED, 1, stops / test.lengths)[test.label == 1].mean()
        alarms = (stops != MISSED)[test.label == 0].mean()
        values = line["test"]
        assert values["released_share"]["value"] == pytest.approx(released)
        assert values["false_alarm_rate"]["value"] == pytest.approx(alarms)
        share = values["released_share"]
        assert share["low"] <= share["value"] <= share["high"]
        rates = [part["false_alarm_rate"] for part in line["by_length"] if part["benign"]]
        assert values["length_gap"]["value"] == pytest.approx(max(rates) - min(rates))
        assert line["valid"]["false_alarm_rate"] <= line["target"]
        reference = next(
            one for one in result["rules"]
            if (one["target"], one["family"]) == (line["target"], "delay-k")
        )  # fmt: skip
        difference = released - reference["test"]["released_share"]["value"]
        assert line["against"]["released_share"]["value"] == pytest.approx(difference)
        equal, target = line["equal_false_alarms"], line["target"]
        alarms = equal["test"]["false_alarm_rate"]
        assert list(alarms.values()) == pytest.approx([target] * 3)  # in each sample, too
        difference = equal["test"]["released_share"]["value"]
        difference -= reference["equal_false_alarms"]["test"]["released_share"]["value"]
        assert equal["against"]["released_share"]["value"] == pytest.approx(difference)
        highest = np.array([trace(rule, probs).max() for probs in test.token_probs])
        theta = np.nextafter(np.sort(highest[test.label == 0])[-round(target * 30) - 1], INF)
        stops = np.array([stop_of(rule, theta, probs) for probs in test.token_probs])
        if (stops != MISSED)[test.label == 0].mean() == pytest.approx(target):
            untied.add((target, line["family"]))
            released = np.where(stops == MISSED, 1, stops / test.lengths)[test.label == 1].mean()
            assert equal["test"]["released_share"]["value"] == pytest.approx(released)
            missed = (stops == MISSED)[test.label == 1].mean()
            assert equal["test"]["miss_rate"]["value"] == pytest.approx(missed)
    assert len(untied) >= 8  # the others' benign responses tie: no threshold stops so many
    outcome = test.partial(result["rules"][1]["threshold"], result["rules"][1]["shape"]["k"])
    macro_f1 = result["rules"][1]["test"]["macro_f1"]["value"]
    assert macro_f1 == pytest.approx(point_metrics(outcome)["macro_f1"])
    rows = list(csv.DictReader((folder / "rules.csv").open()))
    assert len(rows) == 10 and rows[1]["shape"].startswith("k ")
    assert float(rows[1]["test_macro_f1_value"]) == pytest.approx(macro_f1)
    for row, line in zip(rows, result["rules"], strict=True):
        equal = line["equal_false_alarms"]
        shown = f"{100 * equal['test']['released_share']['value']:.1f} ["
        assert f"| {row['shape']} | {shown}" in (folder / "rules.md").read_text()
        for part, name in (("test", "value"), ("test", "low"), ("against", "p")):
            column = f"equal_false_alarms_{part}_released_share_{name}"
            assert float(row[column]) == equal[part]["released_share"][name]
        first = line["by_length"][0]["false_alarm_rate"]
        assert row["by_length_1_false_alarm_rate"] == ("" if first is None else str(first))
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["data"]["predictions_sha256"]


def test_a_comparison_is_not_overwritten_unasked(metrics_dir, tmp_path):
    config = RulesConfig(str(metrics_dir), str(tmp_path / "out"), [0.2], bootstrap=5)
    main(config)
    before = (tmp_path / "out" / "rules.json").read_bytes()
    with pytest.raises(FinishedAlready):
        main(config)
    config.overwrite = True
    main(config)
    assert (tmp_path / "out" / "rules.json").read_bytes() == before  # the same to the bit


@pytest.mark.parametrize("targets", [[0.0], [0.1, 1.0]])
def test_a_target_that_is_no_share_is_refused(targets):
    with pytest.raises(InputError, match="--targets: .* is not above 0 and below 1"):
        RulesConfig("m", "o", targets)


def test_a_seed_below_zero_is_refused():
    with pytest.raises(InputError, match="--seed: -1 is below 0"):
        RulesConfig("m", "o", seed=-1)


def test_what_cannot_be_compared_is_named(metrics_dir, tmp_path):
    folder = tmp_path / "metrics"
    config = RulesConfig(str(folder), str(tmp_path / "out"))
    eight, benign = random_split(8), split_of((0, [0.1]), (0, [0.2]))
    with pytest.raises(InputError, match="no such file|cannot be read"):
        main(config)
    for test, message in (
        (random_split(8, partial=False), "'valid_token_probs' is missing: full detection alone"),
        (benign, "predictions.npz: split 'test' lacks a class"),
        (eight, "4 benign validation responses .* of 0.05; it takes 19"),
    ):
        write_run(folder, valid=eight if test.token_probs else test, test=test)
        with pytest.raises(InputError, match=message):
            main(config)
        shutil.rmtree(folder)
    assert not (tmp_path / "out").exists()

"""Stopping rules by hand and by their properties; three levels; the comparison of rules."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.rules import (
    RULES,
    ConsecutiveK,
    Cusum,
    DelayK,
    Policy,
    WindowedMean,
    fail_closed,
    stop,
    trace,
)
from test.rules import (
    FAMILIES,
    RulesConfig,
    Traced,
    choose_shape,
    main,
    outcome_at,
    running_maxima,
    statistics_of,
)
from tests.conftest import random_split, run
from utils.conformal import conformal_theta
from utils.files import InputError
from utils.metrics import MISSED, delay_k, point_metrics
from utils.predictions import FILE, SPLITS, Predictions, save_predictions

INF = math.inf
counts = st.integers(1, 6)
rules = st.one_of(
    st.builds(DelayK, counts),
    st.builds(ConsecutiveK, counts),
    st.builds(WindowedMean, counts),
    st.builds(Cusum, st.sampled_from([-1.0, 0.0, 0.5, 2.0])),
)
score = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
scores = st.lists(score, max_size=15)
threshold = st.one_of(score, st.floats(0, 20))


@pytest.mark.parametrize(
    "rule, expected",
    [
        (DelayK(1), [0.1, 0.9, 0.9, 0.9, 0.9]),
        (DelayK(2), [-INF, 0.1, 0.2, 0.7, 0.7]),
        (DelayK(3), [-INF, -INF, 0.1, 0.2, 0.5]),
        (ConsecutiveK(1), [0.1, 0.9, 0.2, 0.7, 0.5]),
        (ConsecutiveK(2), [-INF, 0.1, 0.2, 0.2, 0.5]),
        (WindowedMean(2), [0.05, 0.5, 0.55, 0.45, 0.6]),
        (WindowedMean(4), [0.025, 0.25, 0.3, 0.475, 0.575]),
        (Cusum(0), [0, math.log(9), math.log(9 / 4), math.log(21 / 4), math.log(21 / 4)]),
        (Cusum(1), [0, math.log(9) - 1, 0, 0, 0]),
    ],
)
def test_statistics_by_hand(rule, expected):
    found = trace(rule, [0.1, 0.9, 0.2, 0.7, 0.5])
    assert found.dtype == float
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_log_odds_of_certainty_are_finite():
    assert trace(Cusum(0), [1.0, 1.0])[1] == pytest.approx(2 * math.log(1e6), abs=1e-4)
    assert trace(Cusum(0), [0.0]).tolist() == [0]


def test_nothing_said_nothing_stopped():
    for rule in (DelayK(1), ConsecutiveK(1), WindowedMean(1), Cusum(0)):
        assert trace(rule, []).shape == (0,) and stop(rule, 0.5, []) == MISSED


@given(some=scores, theta=threshold, k=counts)
@settings(deadline=None)
def test_delay_k_decides_as_the_evaluation_does(some, theta, k):
    some = np.array(some, dtype=np.float32)
    for one in (theta, *some.tolist(), *(np.nextafter(p, 2.0) for p in some.tolist())):
        assert stop(DelayK(k), one, some) == delay_k(some, one, k)
        assert stop(DelayK(1), one, some) == stop(ConsecutiveK(1), one, some)


@given(some=scores, theta=threshold, k=counts)
@settings(deadline=None)
def test_consecutive_k_counts_tokens_in_a_row(some, theta, k):
    row, expected = 0, MISSED
    for place, p in enumerate(some):
        row = row + 1 if p >= theta else 0
        if row == k:
            expected = place
            break
    assert stop(ConsecutiveK(k), theta, some) == expected


@given(rule=rules, some=scores, more=scores)
@settings(deadline=None)
def test_what_comes_later_changes_nothing(rule, some, more):
    whole = trace(rule, some + more)
    np.testing.assert_array_equal(whole[: len(some)], trace(rule, some))


@given(rule=rules, some=scores, place=st.integers(0, 14), theta=threshold)
@settings(deadline=None)
def test_a_higher_score_stops_no_later(rule, some, place, theta):
    if place < len(some):
        raised = [*some[:place], max(some[place], 0.95), *some[place + 1 :]]
        assert (trace(rule, raised) >= trace(rule, some) - 1e-12).all()


@given(rule=rules, some=scores)
@settings(deadline=None)
def test_states_are_kept_by_whoever_holds_them(rule, some):
    """A step changes neither the rule nor the state that it is given; memory is bounded."""
    state = rule.start()
    for p in some:
        before = hash(state)
        one, other = rule.step(state, p), rule.step(state, p)
        assert one == other and hash(state) == before
        state = one[0]
        assert isinstance(state, float) or len(state) <= 6
    assert rule.start() == rule.start()


@given(rule=rules, some=scores, place=st.integers(0, 14))
@settings(deadline=None)
def test_a_score_that_is_no_number_is_certain_harm(rule, some, place):
    for broken in (math.nan, INF, -INF, np.float32("nan")):
        assert fail_closed(broken) == 1
        spoilt, certain = list(some), list(some)
        spoilt.insert(place, broken)
        certain.insert(place, 1.0)
        np.testing.assert_array_equal(trace(rule, spoilt), trace(rule, certain))
    assert fail_closed(0.25) == 0.25
    assert stop(DelayK(1), 1.0, [0.1, math.nan]) == 1


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None, math.nan])
def test_a_shape_out_of_range_is_refused(name, value):
    if name == "cusum":
        value = INF if value in (0, -1, 2.0) and value is not True else value
        with pytest.raises(InputError, match="field 'drift': .* is not a finite number"):
            Cusum(value)
    else:
        with pytest.raises(InputError, match="field '(k|window)': .* is not a whole number from 1"):
            RULES[name](value)


def test_three_levels_strict_and_loose():
    loose = Policy(DelayK(1), unsafe=0.8, controversial=0.5)
    levels = [loose.level(one) for one in (-INF, 0.49, 0.5, 0.79, 0.8, 1.0, math.nan)]
    assert levels == ["safe"] * 2 + ["controversial"] * 2 + ["unsafe"] * 3
    strict = Policy(DelayK(1), 0.8, 0.5, mode="strict")
    names = ("safe", "controversial", "unsafe")
    assert [loose.stops(name) for name in names] == [False, False, True]
    assert [strict.stops(name) for name in names] == [False, True, True]
    assert (loose.stop_threshold, strict.stop_threshold) == (0.8, 0.5)


def test_two_levels_where_there_is_one_threshold():
    for mode in ("strict", "loose"):
        policy = Policy(Cusum(0), 5, mode=mode)
        assert [policy.level(one) for one in (4.9, 5.0)] == ["safe", "unsafe"]
        assert policy.stop_threshold == 5


@given(
    unsafe=st.floats(0.01, 1), share=st.floats(0.01, 1), mode=st.sampled_from(["strict", "loose"]),
    statistic=st.floats(0, 1),
)  # fmt: skip
@settings(deadline=None)
def test_the_stop_threshold_is_the_least_statistic_that_stops(unsafe, share, mode, statistic):
    policy = Policy(DelayK(2), unsafe, unsafe * share, mode)
    assert policy.stops(policy.level(statistic)) == (statistic >= policy.stop_threshold)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"unsafe": 0}, "field 'unsafe': 0 is no threshold of delay-k: .* at most 1"),
        ({"unsafe": 1.01}, "field 'unsafe': 1.01"),
        ({"unsafe": math.nan}, "field 'unsafe': nan"),
        ({"unsafe": True}, "field 'unsafe': True"),
        ({"unsafe": None}, "field 'unsafe': None"),
        ({"unsafe": INF, "rule": Cusum(0)}, "field 'unsafe': inf .* of cusum: .* and finite"),
        ({"controversial": 0.9}, "field 'controversial': 0.9 is above 'unsafe', 0.8"),
        ({"controversial": "0.5"}, "field 'controversial': '0.5'"),
        ({"mode": "lax"}, "field 'mode': 'lax' is none of strict, loose"),
    ],
)
def test_a_policy_out_of_range_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Policy(**{"rule": DelayK(1), "unsafe": 0.8, **values})


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
    stops = [stop(rule, theta, probs) for probs in split.token_probs]
    assert np.where(outcome.flagged, outcome.released, MISSED).tolist() == stops
    assert (outcome.score >= theta).tolist() == outcome.flagged.tolist()
    if isinstance(rule, DelayK):
        expected = split.partial(theta, rule.k)
        for name, values in vars(expected).items():
            np.testing.assert_array_equal(getattr(outcome, name), values)


def test_the_shape_that_releases_least_is_taken(tmp_path):
    """Benign responses have one high token each, harmful ones two: k = 2 tells them apart."""
    benign = [(0, [0.1, 0.9, 0.1])] * 9
    split = split_of(*benign, (1, [0.8, 0.8, 0.8, 0.8]), (1, [0.1, 0.8, 0.8, 0.8]))
    shapes = [
        Traced(rule, running_maxima(rule, split.token_probs), [])
        for rule in (DelayK(1), DelayK(2), DelayK(3))
    ]
    shape, theta, on_valid = choose_shape(shapes, split, 0.1, tmp_path)
    assert shape.rule == DelayK(2) and 0.1 < theta < 0.1001
    assert on_valid["false_alarm_rate"] == 0 and on_valid["released_share"] == 0.375
    with pytest.raises(InputError, match="9 benign validation responses promise .* it takes 19"):
        choose_shape(shapes, split, 0.05, tmp_path)


@pytest.fixture(scope="module")
def metrics_dir(tmp_path_factory):
    """What a test of SCM leaves behind, as far as the comparison reads it."""
    folder = tmp_path_factory.mktemp("metrics") / "scm"
    folder.mkdir()
    splits = {name: random_split(60, seed) for seed, name in enumerate(SPLITS)}
    save_predictions(folder / FILE, splits)
    (folder / "metrics.json").write_text(json.dumps({"row": "scm", "method": "SCM"}))
    return folder


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
    for line in result["rules"]:
        rule = RULES.get(line["family"], DelayK)(**line["shape"])
        assert rule in FAMILIES[line["family"]]
        highest = [trace(rule, probs).max() for probs in valid.token_probs]
        theta = conformal_theta(np.array(highest)[valid.label == 0], line["target"])
        assert line["threshold"] == theta
        stops = np.array([stop(rule, theta, probs) for probs in test.token_probs])
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
    outcome = test.partial(result["rules"][1]["threshold"], result["rules"][1]["shape"]["k"])
    macro_f1 = result["rules"][1]["test"]["macro_f1"]["value"]
    assert macro_f1 == pytest.approx(point_metrics(outcome)["macro_f1"])
    rows = list(csv.DictReader((folder / "rules.csv").open()))
    assert len(rows) == 10 and rows[1]["shape"].startswith("k ")
    assert float(rows[1]["macro_f1_value"]) == pytest.approx(macro_f1)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["data"]["predictions_sha256"]


def test_a_comparison_is_not_overwritten_unasked(metrics_dir, tmp_path):
    config = RulesConfig(str(metrics_dir), str(tmp_path / "out"), [0.2], bootstrap=5)
    main(config)
    before = (tmp_path / "out" / "rules.json").read_bytes()
    with pytest.raises(InputError, match="already holds an earlier run"):
        main(config)
    config.overwrite = True
    main(config)
    assert (tmp_path / "out" / "rules.json").read_bytes() == before  # the same to the bit


@pytest.mark.parametrize("targets", [[0.0], [0.1, 1.0]])
def test_a_target_that_is_no_share_is_refused(targets):
    with pytest.raises(InputError, match="--targets: .* is not above 0 and below 1"):
        RulesConfig("m", "o", targets)


def test_what_cannot_be_compared_is_named(metrics_dir, tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    config = RulesConfig(str(folder), str(tmp_path / "out"))
    with pytest.raises(InputError, match="metrics.json: no such file"):
        main(config)
    (folder / "metrics.json").write_text('{"row": "scm", "method": "SCM"}')
    full = {name: random_split(8, partial=False) for name in SPLITS}
    save_predictions(folder / FILE, full)
    with pytest.raises(InputError, match="'valid_token_probs' is missing: full detection alone"):
        main(config)
    benign = split_of((0, [0.1]), (0, [0.2]))
    save_predictions(folder / FILE, {"valid": random_split(8), "test": benign})
    with pytest.raises(InputError, match="predictions.npz: split 'test' lacks a class"):
        main(config)
    save_predictions(folder / FILE, {name: random_split(8) for name in SPLITS})
    with pytest.raises(InputError, match="4 benign validation responses .* of 0.05; it takes 19"):
        main(config)
    assert not (tmp_path / "out").exists()

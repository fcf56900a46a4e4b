"""Stopping rules by hand and by their properties; three levels."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.decisions import MISSED, delay_k
from monitor.rules import (
    RULES,
    ConsecutiveK,
    Cusum,
    DelayK,
    Policy,
    WindowedMean,
    fail_closed,
    trace,
)
from tests.conftest import stop_of
from utils.files import InputError
from utils.validation import one_line

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
        assert trace(rule, []).shape == (0,) and stop_of(rule, 0.5, []) == MISSED


@given(some=scores, theta=threshold, k=counts)
@settings(deadline=None)
def test_delay_k_decides_as_the_evaluation_does(some, theta, k):
    some = np.array(some, dtype=np.float32)
    for one in (theta, *some.tolist(), *(np.nextafter(p, 2.0) for p in some.tolist())):
        assert stop_of(DelayK(k), one, some) == delay_k(some, one, k)
        assert stop_of(DelayK(1), one, some) == stop_of(ConsecutiveK(1), one, some)


@given(some=scores, theta=threshold, k=counts)
@settings(deadline=None)
def test_consecutive_k_counts_tokens_in_a_row(some, theta, k):
    row, expected = 0, MISSED
    for place, p in enumerate(some):
        row = row + 1 if p >= theta else 0
        if row == k:
            expected = place
            break
    assert stop_of(ConsecutiveK(k), theta, some) == expected


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
    assert stop_of(DelayK(1), 1.0, [0.1, math.nan]) == 1


@pytest.mark.parametrize("name", [name for name in RULES if name != "cusum"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2", None, math.nan, 10**11])
def test_a_count_out_of_range_is_refused(name, value):
    with pytest.raises(InputError, match="field '(k|window)': input"), one_line(""):
        RULES[name](**{next(iter(RULES[name].__pydantic_fields__)): value})


@pytest.mark.parametrize("value", [INF, math.nan, True, "2", None, 10**400])
def test_a_drift_that_is_no_finite_number_is_refused(value):
    with pytest.raises(InputError, match="field 'drift': input should be a"), one_line(""):
        Cusum(drift=value)


@pytest.mark.parametrize("rule", RULES.values())
def test_a_rule_brings_what_its_options_and_the_comparison_need(rule):
    for shape in rule.shapes:
        assert rule(*shape).step(rule(*shape).start(), 0.5)
    assert all(one.description for one in rule.__pydantic_fields__.values())


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
        ({"unsafe": 0}, "field 'unsafe': input should be greater than 0, found 0"),
        ({"unsafe": 1.01}, "field 'unsafe': delay-k reaches 1 at most, found 1.01"),
        ({"unsafe": math.nan}, "field 'unsafe': .* finite number, found nan"),
        ({"unsafe": True}, "field 'unsafe': .* valid number, found True"),
        ({"unsafe": None}, "field 'unsafe': .* valid number, found None"),
        ({"unsafe": INF, "rule": Cusum(0)}, "field 'unsafe': .* finite number, found inf"),
        ({"controversial": 0.9}, "field 'controversial': it is above 'unsafe', 0.8, found 0.9"),
        ({"controversial": "0.5"}, "field 'controversial': .* valid number, found '0.5'"),
        ({"mode": "lax"}, "field 'mode': input should be 'strict' or 'loose', found 'lax'"),
    ],
)
def test_a_policy_out_of_range_is_refused(values, message):
    with pytest.raises(InputError, match=message), one_line(""):
        Policy(**{"rule": DelayK(1), "unsafe": 0.8, **values})

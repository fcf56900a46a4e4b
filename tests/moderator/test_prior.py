"""The lower threshold after a flagged prompt, by hand and never looser."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.conformal import conformal_theta
from evaluation.decisions import macro_f1
from moderator.options import PriorConfig
from moderator.prior import Judged, choose_prior, main
from monitor.rules import DelayK
from monitor.settings import read_settings
from tests.conftest import settings_of
from tests.test.test_compare_rules import split_of
from utils.files import InputError

LABEL = np.array([1, 1, 0, 0, 1, 0])
FLAGGED = np.array([True, True, True, True, False, False])
STATISTIC = np.array([0.7, 0.5, 0.45, 0.2, 0.5, 0.6])


def test_by_hand():
    # two harmful responses more are caught from 0.5 down, a benign one falls from 0.45 down
    found = choose_prior(STATISTIC, LABEL, FLAGGED, 0.9, 0)
    assert 0.45 < found <= 0.5 and found == pytest.approx(0.495)
    assert choose_prior(STATISTIC, LABEL, FLAGGED & (LABEL == 0), 0.9, 0) == 0.9  # nothing to win


def test_a_share_that_cannot_be_promised_is_refused():
    benign = FLAGGED & (LABEL == 0)
    found = choose_prior(STATISTIC, LABEL, FLAGGED, 0.9, 0.5)
    assert found == conformal_theta(STATISTIC[benign], 0.5) < 0.9
    for most, target in ((0.9, 0.01), (0.3, 0.5)):  # too few; only above the ordinary threshold
        with pytest.raises(InputError, match="--target-false-alarm: 2 benign .* do not promise"):
            choose_prior(STATISTIC, LABEL, FLAGGED, most, target)


def test_a_strict_monitors_prior_is_below_what_it_stops_at(tmp_path, monkeypatch, capsys):
    valid = split_of(*[(int(label), [one]) for label, one in zip(LABEL, STATISTIC, strict=True)])
    settings = settings_of(DelayK(1), 0.9, controversial=0.48, mode="strict")
    judged = Judged(SimpleNamespace(valid=valid), settings, {"valid": FLAGGED})
    monkeypatch.setattr("moderator.prior.judge_prompts", lambda config, *needed: judged)
    names = ("metrics_dir", "input_dir", "moderator_path", "monitor_path")
    path = tmp_path / "monitor.json"
    main(PriorConfig(**dict.fromkeys(names, "x"), output_file=str(path)))
    chosen = read_settings(path)
    assert chosen.flagged_unsafe == 0.48 == chosen.flagged_policy.stop_threshold  # nothing to win
    assert "(others 0.48): stops 0.0 % of the benign ones (before 0.0 %)" in capsys.readouterr().out


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=20
    ),
    st.floats(0.05, 1),
    st.sampled_from([0, 0.1, 0.5]),
)  # fmt: skip
def test_it_lowers_the_threshold_or_leaves_it(responses, unsafe, target):
    statistic, label, flagged = (np.array(one) for one in zip(*responses, strict=True))
    try:
        found = choose_prior(statistic, label.astype(int), flagged, unsafe, target)
    except InputError:
        assert target
        return
    assert 0 < found <= unsafe
    if not target:
        before, after = (
            macro_f1(statistic >= np.where(flagged, at, unsafe), label) for at in (unsafe, found)
        )
        assert after >= before

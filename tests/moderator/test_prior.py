"""The lower threshold after a flagged prompt, by hand and never looser."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.conformal import conformal_theta
from evaluation.decisions import macro_f1
from moderator.prior import choose_prior

LABEL = np.array([1, 1, 0, 0, 1, 0])
FLAGGED = np.array([True, True, True, True, False, False])
STATISTIC = np.array([0.7, 0.5, 0.45, 0.2, 0.5, 0.6])


def test_by_hand():
    # two harmful responses more are caught from 0.5 down, a benign one falls from 0.45 down
    found = choose_prior(STATISTIC, LABEL, FLAGGED, 0.9, 0)
    assert 0.45 < found <= 0.5 and found == pytest.approx(0.495)
    assert choose_prior(STATISTIC, LABEL, FLAGGED & (LABEL == 0), 0.9, 0) == 0.9  # nothing to win


def test_a_promised_share_is_never_looser_than_the_ordinary_threshold():
    benign = FLAGGED & (LABEL == 0)
    found = choose_prior(STATISTIC, LABEL, FLAGGED, 0.9, 0.5)
    assert found == conformal_theta(STATISTIC[benign], 0.5) < 0.9
    assert choose_prior(STATISTIC, LABEL, FLAGGED, 0.9, 0.01) == 0.9  # too few to promise it
    assert choose_prior(STATISTIC, LABEL, FLAGGED, 0.3, 0.5) == 0.3


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=20
    ),
    st.floats(0.05, 1),
    st.sampled_from([0, 0.1, 0.5]),
)  # fmt: skip
def test_it_lowers_the_threshold_or_leaves_it(responses, unsafe, target):
    statistic, label, flagged = (np.array(one) for one in zip(*responses, strict=True))
    found = choose_prior(statistic, label.astype(int), flagged, unsafe, target)
    assert 0 < found <= unsafe
    if not target:
        before, after = (
            macro_f1(statistic >= np.where(flagged, at, unsafe), label) for at in (unsafe, found)
        )
        assert after >= before

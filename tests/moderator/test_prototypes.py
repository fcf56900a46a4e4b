"""The formulas of the paper, against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from moderator.combiner import Combiner, fit_combiner
from moderator.prototypes import ClassSums, make_prototypes
from tests.moderator.conftest import rows_of
from utils.files import InputError


def sums_of(states, classes, count, cuts=()):
    sums = ClassSums(count, *states.shape[1:])
    for part, some in zip(np.split(states, cuts), np.split(classes, cuts), strict=True):
        if len(part):
            sums.add(part, some)
    return sums


@given(st.lists(st.integers(0, 30), max_size=5), st.integers(0, 2**32 - 1))
def test_sums_do_not_depend_on_the_parts(cuts, seed):
    rows = rows_of((12, 7, 11), valid=0, seed=seed)
    order = np.random.default_rng(seed).permutation(30)
    states, classes = rows.states[order], rows.classes[order]
    whole, cut = sums_of(states, classes, 3), sums_of(states, classes, 3, sorted(cuts))
    assert (whole.counts == [12, 7, 11]).all() and (whole.counts == cut.counts).all()
    assert np.allclose(whole.means, cut.means, rtol=0, atol=1e-12)
    assert np.allclose(whole.scatter, cut.scatter, rtol=0, atol=1e-10)
    for one in range(3):
        of_class = states[classes == one].astype(float)
        assert np.allclose(whole.means[one], of_class.mean(axis=0))


@pytest.mark.parametrize("counts", [(40, 60), (3, 4)], ids=["many", "fewer than dimensions"])
def test_the_precision_is_scikit_learns_shrinkage(counts):
    """δ = d / (N − 1 + d); log-odds differ by δ (N − 1) / N and by the priors."""
    rows = rows_of(counts, valid=0, shape=(1, 12))
    states = rows.states[:, 0].astype(float)
    n, d = states.shape
    shrinkage = d / (n - 1 + d)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    decision = theirs.fit(states, rows.classes).decision_function(states)
    expected = (decision - np.log(counts[1] / counts[0])) * shrinkage * (n - 1) / n
    prototypes = make_prototypes(sums_of(rows.states, rows.classes, 2), "gda")
    said = prototypes.probabilities(rows.states)[:, 0]
    assert np.allclose(np.log(said[:, 1] / said[:, 0]), expected, rtol=1e-6, atol=1e-9)


def test_the_nearest_mean_is_softmax_of_minus_the_distance():
    states = np.array([[[0.0, 0.0]], [[3.0, 4.0]]])
    prototypes = make_prototypes(sums_of(states, np.array([0, 1]), 2), "nearest-mean")
    near = 1 / (1 + np.exp(-5.0))
    assert np.allclose(prototypes.probabilities(states)[:, 0], [[near, 1 - near], [1 - near, near]])


def test_an_empty_class_is_refused():
    rows = rows_of((4, 4), valid=0)
    with pytest.raises(InputError, match="class 2 has no prompt"):
        make_prototypes(sums_of(rows.states, rows.classes, 3), "gda")


def test_a_gap_in_the_numbers_of_classes_is_refused():
    rows = rows_of((4, 4), valid=0)
    with pytest.raises(InputError, match="class 1 has no prompt"):
        make_prototypes(sums_of(rows.states, rows.classes * 2, 3), "gda")


def test_equal_states_are_refused():
    states = np.zeros((4, 2, 3))
    with pytest.raises(InputError, match="same states"):
        make_prototypes(sums_of(states, np.array([0, 0, 1, 1]), 2), "gda")


def test_states_that_are_no_numbers_are_refused():
    states = np.zeros((2, 2, 3))
    states[1, 0, 0] = np.nan
    with pytest.raises(InputError, match="not numbers"):
        ClassSums(2, 2, 3).add(states, np.array([0, 1]))


SAID = np.array([[[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], [[0.6, 0.4], [0.7, 0.3], [0.8, 0.2]]])


def test_a_vote_is_the_share_of_layers_and_the_last_is_the_last():
    vote, last = (fit_combiner(kind, SAID, np.array([1, 0]), 1.0) for kind in ("vote", "last"))
    assert np.allclose(vote.score(SAID), [2 / 3, 0]) and vote.layers == (1, 2, 3)
    assert np.allclose(last.score(SAID), [0.7, 0.2]) and last.layers == (3,)


def test_the_regression_leaves_layers_out():
    random = np.random.default_rng(0)
    label = np.arange(200) % 2
    harm = random.uniform(size=(200, 4))
    harm[:, 2] = 0.8 * label + 0.1
    said = np.stack([1 - harm, harm], axis=2)
    combiner = fit_combiner("l1", said, label, 0.1)
    assert combiner.layers == (3,)
    assert ((combiner.score(said) >= 0.5) == label).all()
    assert fit_combiner("l1", said, label, 1e-6).layers == ()


def test_the_best_layer_is_validations_choice():
    random, label = np.random.default_rng(1), np.arange(40) % 2
    harm = random.uniform(0.4, 0.6, size=(40, 4))
    harm[:, 1:3] = 0.8 * label[:, None] + 0.1  # two that rank alike: the later one
    said = np.stack([1 - harm, harm], axis=2)
    worthless = said[:, ::-1] * 0 + 0.5
    combiner = fit_combiner("best", worthless, label, 1.0, (said, label))
    assert combiner.layers == (3,) and np.allclose(combiner.score(said), harm[:, 2])


def test_the_regression_needs_both():
    with pytest.raises(InputError, match="both needed"):
        fit_combiner("l1", SAID, np.array([1, 1]), 1.0)


def test_no_layer_speaks_without_a_coefficient():
    assert Combiner("l1", np.zeros((3, 1))).layers == ()

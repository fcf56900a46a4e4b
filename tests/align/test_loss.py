"""The loss by hand, its weights, and where it is DPO."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from align.loss import dpo_loss, sft_loss, token_weights

KINDS = ("tokens", "even", "random", "mean-one", "mask")
verdicts = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12).map(np.array)


def weights(chosen, rejected, kind="tokens", alpha=1.0, seed=0):
    random = np.random.default_rng(seed)
    return token_weights(np.array(chosen), np.array(rejected), kind, alpha, random)


def test_weights_by_hand():
    chosen, rejected = weights([0.0, 1.0, 0.5], [0.0, 1.0], alpha=0.5)
    assert chosen.tolist() == [1.0, 0.5, 0.75] and rejected.tolist() == [1.0, 1.5]
    chosen, rejected = weights([0.0, 1.0], [1.0, 0.0, 0.0, 0.0], "even")
    assert chosen.tolist() == [0.5, 0.5] and rejected.tolist() == [1.25] * 4
    chosen, rejected = weights([0.0, 1.0], [1.0, 0.0, 0.0], "mask")
    assert chosen.tolist() == [1.0, 0.0] and rejected.tolist() == [1.0, 0.0, 0.0]
    assert weights([0.0], [0.0, 0.0], "mask")[1].tolist() == [1.0, 1.0]  # none is harmful
    chosen, rejected = weights([0.0, 1.0], [1.0, 0.0, 0.0], "mean-one")
    assert chosen.tolist() == [2.0, 0.0]
    assert rejected.tolist() == pytest.approx([1.5, 0.75, 0.75])


@given(verdicts, verdicts, st.sampled_from(KINDS), st.floats(0, 1))
def test_weights_are_never_negative(chosen, rejected, kind, alpha):
    for one, given_ in zip(weights(chosen, rejected, kind, alpha), (chosen, rejected), strict=True):
        assert len(one) == len(given_) and (one >= 0).all() and np.isfinite(one).all()


@given(verdicts, verdicts, st.sampled_from(KINDS[:-1]))
def test_alpha_0_and_pairs_without_harm_have_weights_of_1(chosen, rejected, kind):
    for one in weights(chosen, rejected, kind, alpha=0.0):
        assert (one == 1).all()
    for one in weights(0 * chosen, 0 * rejected, kind):
        assert (one == 1).all()


@given(verdicts, verdicts, st.floats(0, 1))
def test_controls_give_the_same_weight_in_all(chosen, rejected, alpha):
    totals = [one.sum() for one in weights(chosen, rejected, "tokens", alpha)]
    for kind in ("even", "random"):
        assert [one.sum() for one in weights(chosen, rejected, kind, alpha)] == pytest.approx(
            totals, abs=1e-5
        )
    for one in weights(chosen, rejected, "mean-one", alpha / 2):
        assert one.mean() == pytest.approx(1, abs=1e-5)


def test_random_moves_the_verdicts_by_its_seed():
    given_ = np.arange(9) / 10
    one, other, again = (weights(given_, given_, "random", seed=seed)[1] for seed in (1, 2, 1))
    assert sorted(one) == sorted(other) and one.tolist() != other.tolist()
    assert one.tolist() == again.tolist()


def test_loss_by_hand():
    policy = torch.tensor([[0.0, -1.0, -2.0], [0.0, -3.0, -1.0]])
    reference = torch.tensor([[0.0, -2.0, -2.0], [0.0, -1.0, -1.5]])
    given_ = torch.tensor([[0.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    margin = (1.0 + 0.0) - (2 * -2.0 + 0.5)  # Σ w D of the chosen answer − of the rejected one
    expected = math.log(1 + math.exp(-0.1 * margin))
    assert dpo_loss(policy, reference, given_, 0.1).item() == pytest.approx(expected)


def test_gradient_is_the_weight_of_each_token():
    policy = torch.zeros(2, 3, requires_grad=True)
    given_ = torch.tensor([[0.0, 1.0, 0.5], [0.0, 2.0, 1.0]])
    dpo_loss(policy, torch.zeros(2, 3), given_, 0.2).backward()
    signs = torch.tensor([[1.0], [-1.0]])
    assert torch.allclose(policy.grad, -0.2 * 0.5 * given_ * signs)


def test_supervised_loss_counts_each_answer_alike():
    policy = torch.tensor([[-9.0, -1.0, -3.0], [-9.0, -4.0, -9.0]])
    answers = torch.tensor([[False, True, True], [False, True, False]])
    assert sft_loss(policy, answers).item() == pytest.approx((2 + 4) / 2)

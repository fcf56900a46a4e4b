"""The loss against plain arithmetic."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.loss import benign_consistency, dual_task_loss, logic_consistency

BIG = 60.0


def logits(probability_of_harm: list[float]) -> torch.Tensor:
    p = torch.tensor(probability_of_harm, dtype=torch.float64)
    return torch.stack([torch.zeros_like(p), torch.logit(p)], -1)


@pytest.mark.parametrize(
    "holistic, token, expected",
    [
        (0, 0, 0.0),
        (0, 1, 0.0),
        (1, 1, 0.0),
        (1, 0, BIG - math.log(2)),
    ],  # F ⇒ G fails in one corner alone
)
def test_logic_at_the_four_corners(holistic, token, expected):
    hol = torch.tensor([[0.0, BIG if holistic else -BIG]])
    tok = torch.tensor([[[0.0, BIG if token else -BIG]]])
    value = logic_consistency(hol, tok, torch.ones(1, 1, dtype=torch.bool))
    assert value.item() == pytest.approx(expected, abs=1e-5)


probability = st.floats(1e-6, 1 - 1e-6)


@given(c=probability, tokens=st.lists(probability, min_size=1, max_size=6))
@settings(deadline=None)
def test_logic_is_the_papers_formula(c, tokens):
    mask = torch.ones(1, len(tokens), dtype=torch.bool)
    value = logic_consistency(logits([c]), logits([tokens]), mask)
    expected = -math.log(1 - c + c * max(tokens))
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(margins=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)))
@settings(deadline=None)
def test_logic_and_its_gradient_stay_finite(margins):
    hol = torch.tensor([[0.0, margins[0]]], requires_grad=True)
    tok = torch.tensor([[[0.0, margins[1]]]], requires_grad=True)
    value = logic_consistency(hol, tok, torch.ones(1, 1, dtype=torch.bool))
    value.sum().backward()
    assert value.isfinite().all() and (value >= -1e-6).all()
    assert hol.grad.isfinite().all() and tok.grad.isfinite().all()


def test_a_saturated_contradiction_still_has_a_gradient():
    tok = torch.tensor([[[0.0, -100.0]]], requires_grad=True)
    hol = torch.tensor([[0.0, 200.0]])
    logic_consistency(hol, tok, torch.ones(1, 1, dtype=torch.bool)).sum().backward()
    assert tok.grad[0, 0, 1].item() == pytest.approx(-1, abs=1e-3)


def test_logic_looks_at_response_tokens_alone():
    tok = logits([[0.999, 0.1, 0.2]])
    mask = torch.tensor([[False, True, True]])
    value = logic_consistency(logits([0.9]), tok, mask)
    assert value.item() == pytest.approx(-math.log(1 - 0.9 + 0.9 * 0.2), rel=1e-5)


def random_batch(rows: int = 5, length: int = 7) -> dict:
    torch.manual_seed(0)
    labels = torch.randint(-1, 2, (rows, length))
    mask = torch.arange(length) >= torch.randint(0, 4, (rows, 1))
    labels = torch.where(mask & (labels >= 0), labels, -100)
    return {
        "token_logits": torch.randn(rows, length, 2, dtype=torch.float64, requires_grad=True),
        "holistic_logits": torch.randn(rows, 2, dtype=torch.float64, requires_grad=True),
        "token_labels": labels,
        "response_label": torch.randint(0, 2, (rows,)),
        "response_mask": mask,
    }


def test_loss_and_gradients_match_a_reference_computation():
    """An independent computation from the paper's formulas, value by value."""
    batch = random_batch()
    parts = dual_task_loss(**batch, alpha=0.6, logic_weight=1.0)
    parts["loss"].backward()

    tok = batch["token_logits"].detach().clone().requires_grad_()
    hol = batch["holistic_logits"].detach().clone().requires_grad_()
    token_terms, holistic_terms, logic_terms = [], [], []
    for row in range(len(tok)):
        p_hol = torch.exp(hol[row]) / torch.exp(hol[row]).sum()
        holistic_terms.append(-torch.log(p_hol[batch["response_label"][row]]))
        highest = torch.tensor(0.0, dtype=torch.float64)
        for place in range(tok.shape[1]):
            p_tok = torch.exp(tok[row, place]) / torch.exp(tok[row, place]).sum()
            if batch["response_mask"][row, place] and p_tok[1] > highest:
                highest = p_tok[1]
            if batch["token_labels"][row, place] != -100:
                token_terms.append(-torch.log(p_tok[batch["token_labels"][row, place]]))
        logic_terms.append(-torch.log(1 - p_hol[1] + p_hol[1] * highest))
    mean = [torch.stack(terms).mean() for terms in (token_terms, holistic_terms, logic_terms)]
    expected = 0.6 * mean[0] + 0.4 * mean[1] + 1.0 * mean[2]
    expected.backward()
    for name, reference in zip(("token_loss", "holistic_loss", "logic_loss"), mean, strict=True):
        assert parts[name].item() == pytest.approx(reference.item(), rel=1e-5)
    assert parts["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(batch["token_logits"].grad, tok.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(batch["holistic_logits"].grad, hol.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4, 7, 8])
def test_k_harmful_tokens_of_a_benign_response_cost(k):
    """Value by value, with the gradient at the k-th largest alone."""
    batch = random_batch()
    given = (batch["token_logits"], batch["response_label"], batch["response_mask"])
    found = benign_consistency(*given, k)
    (found.sum() + 0 * given[0].sum()).backward()
    for row, value in enumerate(found.tolist()):
        scores = torch.softmax(batch["token_logits"][row].detach(), -1)[:, 1]
        ranked = sorted(zip(scores.tolist(), range(7), strict=True), reverse=True)
        ranked = [one for one in ranked if batch["response_mask"][row, one[1]]]
        counts = batch["response_label"][row] == 0 and len(ranked) >= k
        assert value == pytest.approx(-math.log(1 - ranked[k - 1][0]) if counts else 0, rel=1e-5)
        moved = batch["token_logits"].grad[row].abs().sum(-1).nonzero().flatten().tolist()
        assert moved == ([ranked[k - 1][1]] if counts else [])
    plain = dual_task_loss(**batch, alpha=0.6, logic_weight=1.0)
    parts = dual_task_loss(**batch, alpha=0.6, logic_weight=1.0, benign_weight=0.5, benign_k=k)
    assert "benign_loss" not in plain
    assert parts["benign_loss"].item() == pytest.approx(found.mean().item(), rel=1e-5)
    total = plain["loss"] + 0.5 * parts["benign_loss"]
    assert parts["loss"].item() == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_of_a_batch_add_up_to_the_batch(size):
    batch = random_batch()
    options = {"alpha": 0.3, "logic_weight": 0.5, "benign_weight": 0.7, "benign_k": 2}
    whole = dual_task_loss(**batch, **options)
    items = torch.tensor([(batch["token_labels"] != -100).sum(), len(batch["response_label"])])
    total = sum(
        dual_task_loss(
            **{name: value[start : start + size] for name, value in batch.items()},
            **options,
            num_items=items,
        )["loss"]
        for start in range(0, 5, size)
    )
    assert total.item() == pytest.approx(whole["loss"].item(), rel=1e-5)


def test_half_precision_logits_are_scored_in_float32():
    batch = random_batch()
    batch["token_logits"] = batch["token_logits"].detach().bfloat16()
    batch["holistic_logits"] = batch["holistic_logits"].detach().bfloat16()
    parts = dual_task_loss(**batch, alpha=0.6, logic_weight=1.0)
    assert parts["loss"].dtype == torch.float32
    exact = {**batch, "token_logits": batch["token_logits"].float()}
    exact["holistic_logits"] = batch["holistic_logits"].float()
    assert parts["loss"] == dual_task_loss(**exact, alpha=0.6, logic_weight=1.0)["loss"]


def test_full_detection_baseline_leaves_the_token_scorer_alone():
    batch = random_batch()
    dual_task_loss(**batch, alpha=0.0, logic_weight=0.0)["loss"].backward()
    assert (batch["token_logits"].grad == 0).all()
    assert (batch["holistic_logits"].grad != 0).any()


def test_a_batch_without_labelled_tokens_has_a_loss():
    batch = random_batch()
    batch["token_labels"] = torch.full_like(batch["token_labels"], -100)
    assert dual_task_loss(**batch, alpha=0.6, logic_weight=1.0)["loss"].isfinite()

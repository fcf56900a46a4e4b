"""The training loss as a pure function: the paper's three parts, and one of our own."""

import torch
from torch import Tensor
from torch.nn import functional as F


def _margins(token_logits: Tensor, response_mask: Tensor) -> Tensor:
    """Returns log-odds of harm in float32, (batch, seq_len); −inf beside the response."""
    tokens = token_logits.float()  # (batch, seq_len, 2)
    return (tokens[..., 1] - tokens[..., 0]).masked_fill(~response_mask, -torch.inf)


def logic_consistency(
    holistic_logits: Tensor, token_logits: Tensor, response_mask: Tensor
) -> Tensor:
    """Penalises a harmful response without a harmful token: −log(1 − c_hol + c_hol·max_i c_tok_i).

    It is −log of the probability of the implication "response harmful ⇒ some token harmful", and is
    computed in log space, where saturated scores keep their gradient.

    Args:
        holistic_logits: (batch, 2), benign then harmful.
        token_logits: (batch, seq_len, 2).
        response_mask: bool (batch, seq_len), true on response tokens (at least one a row).

    Returns:
        float32 (batch,), one value a response.

    Source: arXiv 2506.09996, logic-consistency loss.
    """
    holistic = holistic_logits.float()  # (batch, 2)
    holistic_margin = holistic[:, 1] - holistic[:, 0]  # (batch,); sigmoid of it is c_hol
    highest = _margins(token_logits, response_mask).amax(dim=1)  # (batch,)
    log_not_harmful = F.logsigmoid(-holistic_margin)
    log_both_harmful = F.logsigmoid(holistic_margin) + F.logsigmoid(highest)
    return -torch.logaddexp(log_not_harmful, log_both_harmful)


def benign_consistency(
    token_logits: Tensor, response_label: Tensor, response_mask: Tensor, k: int
) -> Tensor:
    """Penalises k harmful tokens in a benign response: −log(1 − c), c the k-th largest c_tok_i.

    The converse of `logic_consistency`, and by labels: whatever delay-k detection stops has k
    harmful tokens. It is 0 for harmful responses, and for those of fewer tokens.

    Args:
        token_logits: (batch, seq_len, 2), benign then harmful.
        response_label: int (batch,).
        response_mask: bool (batch, seq_len), true on response tokens.
        k: From 1.

    Returns:
        float32 (batch,), one value a response.
    """
    margin = _margins(token_logits, response_mask)
    if k > margin.shape[1]:
        return margin.new_zeros(len(margin))
    kth = margin.topk(k, dim=1).values[:, -1]  # (batch,)
    counts = (response_label == 0) & kth.isfinite()
    return F.softplus(kth.masked_fill(~counts, 0)) * counts


def dual_task_loss(
    token_logits: Tensor,
    holistic_logits: Tensor,
    token_labels: Tensor,
    response_label: Tensor,
    response_mask: Tensor,
    *,
    alpha: float,
    logic_weight: float,
    benign_weight: float = 0.0,
    benign_k: int = 4,
    ignore_index: int = -100,
    num_items: Tensor | None = None,
) -> dict[str, Tensor]:
    """L = α·L_tok + (1 − α)·L_hol + β·L_logic, in float32 whatever the logits are.

    With `benign_weight`, which the paper does not have, `benign_consistency` is added by it.

    Args:
        token_logits: (batch, seq_len, 2).
        holistic_logits: (batch, 2).
        token_labels: int (batch, seq_len); `ignore_index` where no loss is due.
        response_label: int (batch,).
        response_mask: bool (batch, seq_len), true on response tokens.
        alpha: Weight of the token scorer's cross-entropy, 0 to 1.
        logic_weight: The paper's β.
        benign_weight: Weight of `benign_consistency`; 0 leaves it out.
        benign_k: Its k.
        ignore_index: Label of tokens without a loss.
        num_items: (2,): labelled tokens and responses to divide by. None takes those of this
            batch (its means). With the counts of a larger batch, the losses of its parts add up to
            the loss of the whole.

    Returns:
        loss, token_loss, holistic_loss and logic_loss, float32 scalars; benign_loss if it counts.

    Source: arXiv 2506.09996, training objective; α = 0.6, β = 1 in its experiments.
    """
    labelled = token_labels != ignore_index  # (batch, seq_len)
    if num_items is None:
        tokens, responses = labelled.sum().clamp(min=1), response_label.numel()
    else:
        tokens, responses = num_items[0].clamp(min=1), num_items[1]
    token = F.cross_entropy(
        token_logits.float().flatten(0, 1),  # (batch · seq_len, 2)
        token_labels.flatten().long(),
        ignore_index=ignore_index,
        reduction="sum",
    )
    holistic = F.cross_entropy(holistic_logits.float(), response_label.long(), reduction="sum")
    logic = logic_consistency(holistic_logits, token_logits, response_mask).sum()
    token, holistic, logic = token / tokens, holistic / responses, logic / responses
    total = alpha * token + (1 - alpha) * holistic + logic_weight * logic
    parts = {"token_loss": token, "holistic_loss": holistic, "logic_loss": logic}
    if benign_weight:
        benign = benign_consistency(token_logits, response_label, response_mask, benign_k).sum()
        parts["benign_loss"] = benign / responses
        total = total + benign_weight * parts["benign_loss"]
    return {"loss": total} | parts

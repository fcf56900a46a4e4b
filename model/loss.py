"""The three-part training loss as a pure function."""

import torch
from torch import Tensor
from torch.nn import functional as F


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
    tokens = token_logits.float()  # (batch, seq_len, 2)
    holistic_margin = holistic[:, 1] - holistic[:, 0]  # (batch,); sigmoid of it is c_hol
    token_margin = tokens[..., 1] - tokens[..., 0]  # (batch, seq_len)
    highest = token_margin.masked_fill(~response_mask, -torch.inf).amax(dim=1)  # (batch,)
    log_not_harmful = F.logsigmoid(-holistic_margin)
    log_both_harmful = F.logsigmoid(holistic_margin) + F.logsigmoid(highest)
    return -torch.logaddexp(log_not_harmful, log_both_harmful)


def dual_task_loss(
    token_logits: Tensor,
    holistic_logits: Tensor,
    token_labels: Tensor,
    response_label: Tensor,
    response_mask: Tensor,
    *,
    alpha: float,
    logic_weight: float,
    ignore_index: int = -100,
    num_items: Tensor | None = None,
) -> dict[str, Tensor]:
    """L = α·L_tok + (1 − α)·L_hol + β·L_logic, in float32 whatever the logits are.

    Args:
        token_logits: (batch, seq_len, 2).
        holistic_logits: (batch, 2).
        token_labels: int (batch, seq_len); `ignore_index` where no loss is due.
        response_label: int (batch,).
        response_mask: bool (batch, seq_len), true on response tokens.
        alpha: Weight of the token scorer's cross-entropy, 0 to 1.
        logic_weight: The paper's β.
        ignore_index: Label of tokens without a loss.
        num_items: (2,): labelled tokens and responses to divide by. None takes those of this
            batch (its means). With the counts of a larger batch, the losses of its parts add up to
            the loss of the whole.

    Returns:
        loss, token_loss, holistic_loss and logic_loss, float32 scalars.

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
    return {"loss": total, "token_loss": token, "holistic_loss": holistic, "logic_loss": logic}

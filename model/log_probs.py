"""Log-probabilities that a causal language model gives to chosen tokens of texts.

Logits exist for the chosen tokens alone: those of prompts and padding would cost as much again as
the layers of a small model.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from data.batches import pad, token_budget_batches
from utils.device import autocast

Text = tuple[Sequence[int], int]  # ids of a prompt and its answer, and where the answer starts


def logits_of(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, chosen: Tensor
) -> Tensor:
    """Returns the logits that predict chosen tokens, one forward pass.

    Args:
        model: A causal language model, or a wrapper that calls one.
        input_ids: (batch, seq_len), padded on the right.
        attention_mask: (batch, seq_len).
        chosen: bool (batch, seq_len); never the first token, which nothing predicts.

    Returns:
        (tokens, vocabulary), row by row.
    """
    before = chosen[:, 1:]  # a token is predicted at the place before it

    def keep(backbone: nn.Module, inputs: tuple, output):
        output.last_hidden_state = output.last_hidden_state[:, :-1][before][None]
        return output

    inner = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    hook = inner.base_model.register_forward_hook(keep)
    try:
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[0]
    finally:
        hook.remove()


def log_probs_of(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, chosen: Tensor
) -> Tensor:
    """Returns the log-probability of each token; see `logits_of`.

    Returns:
        float32 (batch, seq_len); 0 at tokens that are not chosen.
    """
    logits = logits_of(model, input_ids, attention_mask, chosen).float()
    found = -functional.cross_entropy(logits, input_ids[chosen], reduction="none")
    return found.new_zeros(chosen.shape).masked_scatter(chosen, found)


@torch.inference_mode()
def answer_log_probs(
    model: nn.Module,
    texts: Sequence[Text],
    token_budget: int,
    bf16: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """Reads texts in padded batches of like length.

    Args:
        model: A causal language model.
        texts: Ids of a prompt and an answer, and where the answer starts, at 1 or behind it.
        token_budget: Padded tokens a batch holds at the most.
        bf16: Compute in bfloat16.

    Yields:
        The number of a text, and float32 [answer tokens] log-probability of each.
    """
    for rows, batch in _batches(model, texts, token_budget):
        with autocast(bf16, batch[0].device):
            found = log_probs_of(model, *batch).cpu()
        yield from zip(rows, _answers_of(found, batch[2]), strict=True)


@torch.inference_mode()
def answer_divergence(
    model: nn.Module, reference: nn.Module, texts: Sequence[Text], token_budget: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Compares what two models of one vocabulary expect at each token of answers.

    Yields:
        The number of a text, and float32 [answer tokens] KL(model ‖ reference) in nats.
    """
    for rows, batch in _batches(model, texts, token_budget):
        logits = (logits_of(one, *batch).float() for one in (model, reference))
        log_p, log_q = (one.log_softmax(-1) for one in logits)  # (tokens, vocabulary)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)  # (tokens,)
        found = divergence.new_zeros(batch[2].shape).masked_scatter(batch[2], divergence).cpu()
        yield from zip(rows, _answers_of(found, batch[2]), strict=True)


def _batches(
    model: nn.Module, texts: Sequence[Text], token_budget: int
) -> Iterator[tuple[list[int], tuple[Tensor, Tensor, Tensor]]]:
    """Yields the numbers of a batch's texts, and ids, mask and the answers' tokens."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        lengths = np.array([len(ids) for ids, _ in texts])
        for rows in token_budget_batches(lengths, token_budget):
            ids, mask = pad([texts[row][0] for row in rows])
            starts = torch.tensor([texts[row][1] for row in rows])
            chosen = mask & (torch.arange(ids.shape[1]) >= starts[:, None])
            yield rows.tolist(), tuple(one.to(device) for one in (ids, mask, chosen))
    finally:
        model.train(was_training)


def _answers_of(values: Tensor, chosen: Tensor) -> list[np.ndarray]:
    """Cuts the answers' values out of (batch, seq_len), which is on the processor."""
    return [row[places].numpy() for row, places in zip(values, chosen.cpu(), strict=True)]

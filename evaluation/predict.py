"""One way to get scores out of a model: every response token, padded batches of like length."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.alignment import IGNORE_INDEX
from data.batches import collate, token_budget_batches
from data.splits import Examples
from model.options import ScoreWith
from model.qwen_dual_task import LOSS_PARTS
from utils.device import autocast
from utils.files import InputError
from utils.options import TOKEN_BUDGET


@dataclass
class Scores:
    """What a detector thinks of one split. N responses of T tokens.

    Attributes:
        token_probs: [N] float32 arrays [T], probability of harm at each response token; None for
            a detector that judges complete responses alone.
        response_prob: float32 [N], probability that the whole response is harmful; NaN throughout
            for a detector that does not judge complete responses.
        losses: The training loss parts' means over the split, where they were asked for.
    """

    token_probs: list[np.ndarray] | None
    response_prob: np.ndarray
    losses: dict[str, float] | None = None


@torch.inference_mode()
def predict(
    model: nn.Module,
    examples: Examples,
    *,
    score_with: ScoreWith = "token",
    bf16: bool = False,
    token_budget: int = TOKEN_BUDGET,
    pad_to: int = 0,
    groups: np.ndarray | None = None,
    with_losses: bool = False,
    description: str | None = None,
) -> Scores:
    """Scores every response token of a split in causal passes, one a response.

    Args:
        model: A `QwenForDualTask`, a model of the same `forward` that has a holistic scorer alone,
            or a wrapper that calls one.
        examples: N examples; their labels do not decide which tokens are scored.
        score_with: Which scorer gives the token probabilities.
        bf16: Compute in bfloat16.
        token_budget: Padded tokens a batch holds at the most.
        pad_to: Least padded length; only the benchmark changes it.
        groups: int [N]; a batch holds examples of one group. None: of any.
        with_losses: Compute the training loss as well.
        description: Shows a progress bar with this text.

    Returns:
        Scores in the order of the examples. Under torchrun each process scores its share and gets
        the scores of all.

    Raises:
        InputError: A score is not a number. It would rank as well as a perfect one.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss_inputs = {}
    if with_losses:
        labelled = sum(int((labels != IGNORE_INDEX).sum()) for labels in examples.token_labels)
        items = torch.tensor([labelled, len(examples)], device=device)
        loss_inputs = {"num_items_in_batch": items}
    token_probs: dict[int, np.ndarray] = {}
    response_prob: dict[int, float] = {}
    losses: Counter[str] = Counter()
    lengths = np.maximum(examples.lengths, pad_to)
    batches = list(token_budget_batches(lengths, token_budget, groups))
    rank, world = 0, 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # sharded models need every process in every forward pass: the last round is topped up
    numbers = range(rank, -(-len(batches) // world) * world, world)
    hidden = description is None or rank > 0
    with tqdm(numbers, description, unit="batch", disable=hidden) as bar:
        for number in bar:
            indices = batches[number % len(batches)].tolist()
            batch = collate([examples[index] for index in indices], pad_to)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            if not with_losses:
                del batch["token_labels"], batch["response_label"]
            with autocast(bf16, device):
                output = model(**batch, **loss_inputs, holistic_everywhere=score_with == "holistic")
            whole = output.holistic_logits.float().softmax(-1)[:, 1].cpu().numpy()  # (batch,)
            response_prob |= zip(indices, whole.tolist(), strict=True)
            everywhere = (
                output.token_logits if score_with == "token" else output.holistic_everywhere
            )
            if everywhere is not None:
                probs = everywhere.float().softmax(-1)[..., 1].cpu().numpy()  # (batch, seq_len)
                for row, index in enumerate(indices):
                    start, end = examples.response_start[index], len(examples.input_ids[index])
                    token_probs[index] = probs[row, start:end].copy()
            for index in indices:
                scores = (response_prob[index], token_probs.get(index, 0.0))
                if not all(np.isfinite(some).all() for some in scores):
                    raise InputError(
                        f"record '{examples.ids[index]}': the model's score is not a number;"
                        " its weights are spoilt"
                    )
            if with_losses and number < len(batches):
                losses.update({name: float(output[name]) for name in LOSS_PARTS if name in output})
    model.train(was_training)
    if world > 1:
        shares: list = [None] * world
        torch.distributed.all_gather_object(shares, (token_probs, response_prob, losses))
        losses = Counter()
        for their_probs, their_prob, their_losses in shares:
            token_probs |= their_probs
            response_prob |= their_prob
            losses.update(their_losses)
    order = range(len(examples))
    return Scores(
        token_probs=[token_probs[index] for index in order] if token_probs else None,
        response_prob=np.array([response_prob[index] for index in order], dtype=np.float32),
        losses=dict(losses) if with_losses else None,
    )

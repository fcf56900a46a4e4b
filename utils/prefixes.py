"""Partial detection by a bidirectional model: every prefix of every response is encoded anew.

A token that comes later changes what such a model thinks of all before it, so nothing of one
prefix's pass serves the next. Prefixes of like length, of whatever response, share a batch: next
to nothing is padded.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils.files import InputError
from utils.metrics import MISSED, delay_k
from utils.predict import TOKEN_BUDGET, Scores, autocast
from utils.splits import Examples, token_budget_batches

ROUND = 32  # prefixes of each response scored before looking whether it is stopped


@dataclass
class StopEarly:
    """The decisions that must stay exact; a response is followed until all of them have fallen.

    Attributes:
        theta: The highest threshold.
        k: The largest k.
    """

    theta: float
    k: int


def scored_places(length: int, stride: int) -> np.ndarray:
    """Returns the indices of the response tokens whose prefixes are scored, the last one included.

    Args:
        length: Response tokens.
        stride: Every stride-th prefix; 1 for all.
    """
    places = np.arange(stride - 1, length, stride)
    return places if length % stride == 0 else np.append(places, length - 1)


def spread(places: np.ndarray, probs: np.ndarray, length: int) -> np.ndarray:
    """Gives each token the score that a monitor which looks at `places` alone knows by then.

    Args:
        places: int [P], scored tokens in order.
        probs: float [P], their scores.
        length: Response tokens.

    Returns:
        float32 [length]; 0 before the first score.
    """
    known = np.searchsorted(places, np.arange(length), side="right")
    return np.concatenate([[0.0], probs])[known].astype(np.float32)


@torch.inference_mode()
def predict_prefixes(
    model: nn.Module,
    examples: Examples,
    *,
    bf16: bool = False,
    token_budget: int = TOKEN_BUDGET,
    stride: int = 1,
    stop_early: StopEarly | None = None,
    description: str | None = None,
) -> Scores:
    """Scores every prefix of every response by the model's holistic scorer.

    Args:
        model: Its `forward` takes input_ids, attention_mask and response_mask, and returns
            holistic_logits.
        examples: N examples.
        bf16: Compute in bfloat16.
        token_budget: Padded tokens a batch holds at the most.
        stride: Score every stride-th prefix and the last; tokens between keep the score before.
        stop_early: Leave a response once its decisions have fallen. Tokens beyond have no score
            (0), which changes none of these decisions but ranks of responses (AUROC); the complete
            response is always judged. None scores everything.
        description: Shows a progress bar with this text.

    Returns:
        Scores in the order of the examples; response_prob is the last prefix's.

    Raises:
        InputError: A score is not a number.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    lengths = examples.response_lengths
    places = [scored_places(length, stride) for length in lengths]
    probs = [np.zeros(len(some), dtype=np.float32) for some in places]
    response_prob = np.zeros(len(examples), dtype=np.float32)

    def score(jobs: np.ndarray) -> None:
        """Scores prefixes, jobs int [J, 2] of (example, number of the place)."""
        sizes = np.array([examples.response_start[i] + places[i][p] + 1 for i, p in jobs])
        for batch in token_budget_batches(sizes, token_budget):
            size = int(sizes[batch].max())
            input_ids = np.zeros((len(batch), size), dtype=np.int64)
            for row, job in enumerate(batch):
                input_ids[row, : sizes[job]] = examples.input_ids[jobs[job][0]][: sizes[job]]
            mask = torch.arange(size) < torch.from_numpy(sizes[batch])[:, None]  # (batch, seq_len)
            starts = torch.tensor([int(examples.response_start[jobs[job][0]]) for job in batch])
            inputs = {
                "input_ids": torch.from_numpy(input_ids),
                "attention_mask": mask.long(),
                "response_mask": mask & (torch.arange(size) >= starts[:, None]),
            }
            with autocast(bf16, device):
                output = model(**{name: tensor.to(device) for name, tensor in inputs.items()})
            some = output.holistic_logits.float().softmax(-1)[:, 1].cpu().numpy()  # (batch,)
            for job, prob in zip(batch, some, strict=True):
                index, place = jobs[job]
                if not np.isfinite(prob):
                    raise InputError(
                        f"record '{examples.ids[index]}': the model's score is not a number;"
                        " its weights are spoilt"
                    )
                probs[index][place] = prob
                if place == len(places[index]) - 1:
                    response_prob[index] = prob
            bar.update(len(batch))

    def is_stopped(index: int) -> bool:
        so_far = spread(places[index], probs[index], lengths[index])
        return stop_early is not None and delay_k(so_far, stop_early.theta, stop_early.k) != MISSED

    alive = np.arange(len(examples))
    counts = np.array([len(some) for some in places])
    size = ROUND if stop_early else counts.max(initial=1)
    total = int(counts.sum())
    with tqdm(total=total, desc=description, unit="prefix", disable=description is None) as bar:
        for first in range(0, counts.max(initial=0), size):
            alive = alive[counts[alive] > first]
            stopped = np.array([is_stopped(index) for index in alive], dtype=bool)
            # full detection judges the complete response in any case
            jobs = [(index, counts[index] - 1) for index in alive[stopped]]
            alive = alive[~stopped]
            for index in alive:
                jobs += [(index, p) for p in range(first, min(first + size, counts[index]))]
            score(np.array(jobs).reshape(-1, 2))
        bar.total = bar.n
        bar.refresh()
    model.train(was_training)
    token_probs = [
        spread(some, row, length) for some, row, length in zip(places, probs, lengths, strict=True)
    ]
    return Scores(token_probs, response_prob)

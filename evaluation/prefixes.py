"""Partial detection by a bidirectional model: every prefix of every response is encoded anew.

A token that comes later changes what such a model thinks of all before it, so nothing of one
prefix's pass serves the next beyond the first layer's attention: neighbouring prefixes of one
response share a batch, so that `model.modernbert_inference` can compute that together.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from data.splits import Examples
from evaluation.decisions import MISSED, delay_k
from evaluation.predict import Scores, predict
from utils.options import TOKEN_BUDGET

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
        model: As for `predict`.
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
    lengths = examples.response_lengths
    places = [scored_places(length, stride) for length in lengths]
    probs = [np.zeros(len(some), dtype=np.float32) for some in places]

    def score(jobs: list[tuple[int, int]], title: str | None) -> None:
        """Scores prefixes, each the number of an example and of one of its places."""
        prefixes = _prefixes(examples, [(index, places[index][place]) for index, place in jobs])
        scores = predict(
            model,
            prefixes,
            bf16=bf16,
            token_budget=token_budget,
            groups=np.array([index for index, _ in jobs], dtype=int),
            description=title,
        ).response_prob
        for (index, place), prob in zip(jobs, scores, strict=True):
            probs[index][place] = prob

    def is_stopped(index: int) -> bool:
        so_far = spread(places[index], probs[index], lengths[index])
        return stop_early is not None and delay_k(so_far, stop_early.theta, stop_early.k) != MISSED

    alive = np.arange(len(examples))
    counts = np.array([len(some) for some in places])
    most = counts.max(initial=0)
    size = ROUND if stop_early else max(most, 1)
    for first in range(0, most, size):
        alive = alive[counts[alive] > first]
        stopped = np.array([is_stopped(index) for index in alive], dtype=bool)
        # full detection judges the complete response in any case
        jobs = [(index, counts[index] - 1) for index in alive[stopped]]
        alive = alive[~stopped]
        for index in alive:
            jobs += [(index, place) for place in range(first, min(first + size, counts[index]))]
        upto = f", prefixes {first + 1}–{min(first + size, most)} of {most}"
        score(jobs, description and description + upto)
    token_probs = [
        spread(some, row, length) for some, row, length in zip(places, probs, lengths, strict=True)
    ]
    return Scores(token_probs, np.array([row[-1] for row in probs], dtype=np.float32))


def _prefixes(examples: Examples, jobs: list[tuple[int, int]]) -> Examples:
    """Returns examples cut after a response token, (example, token) each; nothing is copied."""
    rows = [index for index, _ in jobs]
    ends = [examples.response_start[index] + token + 1 for index, token in jobs]
    cuts = list(zip(rows, ends, strict=True))
    return Examples(
        ids=[examples.ids[index] for index in rows],
        input_ids=[examples.input_ids[index][:end] for index, end in cuts],
        token_labels=[examples.token_labels[index][:end] for index, end in cuts],
        response_start=examples.response_start[rows],
        response_label=examples.response_label[rows],
        prompt_group=examples.prompt_group[rows],
    )

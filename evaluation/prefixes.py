"""Partial detection by a bidirectional model: every prefix of every response is encoded anew.

A token that comes later changes what such a model thinks of all before it, so nothing of one
prefix's pass serves the next beyond the first layer's attention: neighbouring prefixes of one
response share a batch, so that `model.modernbert_inference` can compute that together.
"""

from typing import Any

import numpy as np
from torch import nn

from data.splits import Examples
from evaluation.predict import Scores, predict


def scored_places(length: int, stride: int) -> np.ndarray:
    """Returns which of `length` response tokens end a scored prefix: each stride-th, the last."""
    places = np.arange(stride - 1, length, stride)
    return places if length % stride == 0 else np.append(places, length - 1)


def spread(places: np.ndarray, probs: np.ndarray, length: int) -> np.ndarray:
    """Gives each token the latest score by then, as a monitor of some prefixes knows it.

    Scores .5 and .7 of the tokens 1 and 3 become 0, .5, .5, .7, .7 over five tokens.

    Args:
        places: int [P], scored tokens in order.
        probs: float [P], their scores.
        length: Response tokens.
    """
    known = np.searchsorted(places, np.arange(length), side="right")
    return np.concatenate([[0.0], probs])[known].astype(np.float32)


def predict_prefixes(
    model: nn.Module, examples: Examples, *, stride: int = 1, **options: Any
) -> Scores:
    """Scores every prefix of every response by the model's holistic scorer.

    Args:
        model: As for `predict`.
        examples: N examples.
        stride: Score every stride-th prefix and the last; tokens between keep the score before.
        options: Of `predict`: bf16, token_budget, description.

    Returns:
        Scores whose response_prob is the last prefix's.
    """
    lengths = examples.response_lengths
    places = [scored_places(length, stride) for length in lengths]
    jobs = [(index, token) for index, tokens in enumerate(places) for token in tokens]
    groups = np.array([index for index, _ in jobs], dtype=int)
    scores = predict(model, _prefixes(examples, jobs), groups=groups, **options).response_prob
    probs = np.split(scores, np.cumsum([len(tokens) for tokens in places])[:-1])
    return Scores(
        [spread(*scored) for scored in zip(places, probs, lengths, strict=True)],
        np.array([row[-1] for row in probs], dtype=np.float32),
    )


def _prefixes(examples: Examples, jobs: list[tuple[int, int]]) -> Examples:
    """Returns examples cut after a response token, (example, token) each; nothing is copied."""
    rows = [index for index, _ in jobs]
    cuts = [(index, examples.response_start[index] + token + 1) for index, token in jobs]
    return Examples(
        ids=[examples.ids[index] for index in rows],
        input_ids=[examples.input_ids[index][:end] for index, end in cuts],
        token_labels=[examples.token_labels[index][:end] for index, end in cuts],
        response_start=examples.response_start[rows],
        response_label=examples.response_label[rows],
        prompt_group=examples.prompt_group[rows],
    )

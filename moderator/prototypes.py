"""Prototypes of classes in the states of each layer, in NumPy and float64.

A layer's classes are Gaussians of one covariance (GDA) with equal priors. With N states h of size d
in C classes, mean μ_c, and the pooled scatter around the means

    S = Σ_c Σ_{i in c} (h_i − μ_c)(h_i − μ_c)ᵀ / (N − 1),
    P = d · ((N − 1) S + tr(S) I)⁻¹                          the shrunk precision, also for N < d
    p = softmax(h W + b),  W_c = P μ_c,  b_c = log(1/C) − ½ μ_cᵀ P μ_c

P is ordinary shrinkage of S towards tr(S)/d · I by δ = d / (N − 1 + d), times δ.

Source: arXiv 2502.16174, section on the method.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np

from moderator.options import Prototype
from utils.files import InputError

PART = 256  # prompts whose states are in memory at a time


class ClassSums:
    """Counts, means and scatter of classes in each layer, gathered in one pass.

    What was gathered does not depend on how the states were cut into parts, but for rounding.
    Memory: layers × (classes + hidden) × hidden float64.

    Attributes:
        counts: int [C].
        means: float64 (C, layers, hidden).
        scatter: float64 (layers, hidden, hidden), summed over classes.
    """

    def __init__(self, classes: int, layers: int, hidden: int) -> None:
        self.counts = np.zeros(classes, dtype=int)
        self.means = np.zeros((classes, layers, hidden))
        self.scatter = np.zeros((layers, hidden, hidden))

    def add(self, states: np.ndarray, classes: np.ndarray) -> None:
        """Adds states (n, layers, hidden) of the given classes, int [n].

        Raises:
            InputError: A state is not a number.
        """
        if not np.isfinite(states).all():
            raise InputError("a prompt's states are not numbers")
        rows = []  # whose products with themselves are the scatter
        for one in np.unique(classes):
            part = np.asarray(states[classes == one], dtype=np.float64)  # (n, layers, hidden)
            had, new = self.counts[one], len(part)
            mean = part.mean(axis=0)
            apart = mean - self.means[one]
            # two parts' scatter adds up, and so does the distance of their means
            rows += [part - mean, np.sqrt(had * new / (had + new)) * apart[None]]
            self.means[one] += apart * (new / (had + new))
            self.counts[one] += new
        by_layer = np.ascontiguousarray(np.concatenate(rows).transpose(1, 0, 2))
        for layer, some in enumerate(by_layer):  # (n + classes, hidden)
            self.scatter[layer] += some.T @ some

    def first(self, classes: int) -> Self:
        """Returns what was gathered of the first classes, sharing memory.

        Raises:
            ValueError: Something of the other classes was gathered already; the scatter holds it.
        """
        if self.counts[classes:].any():
            raise ValueError(f"more than the first {classes} classes were gathered")
        found = copy(self)
        found.counts, found.means = self.counts[:classes], self.means[:classes]
        return found


@dataclass
class Prototypes:
    """What tells a layer's classes apart.

    Attributes:
        kind: "gda", or "nearest-mean": softmax of minus the distance from each class's mean.
        weights: float64 (layers, C, hidden); of the nearest mean the means.
        bias: float64 (layers, C); of the nearest mean 0.
    """

    kind: Prototype
    weights: np.ndarray
    bias: np.ndarray

    def probabilities(self, states: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Returns each class's probability by each layer, float64 (n, layers, C).

        Args:
            states: float (n, layers, hidden), or n arrays (layers, hidden).
        """
        layers, classes = self.bias.shape
        parts = [
            self._part(np.asarray(states[start : start + PART], dtype=np.float64))
            for start in range(0, len(states), PART)
        ]
        return np.concatenate([np.empty((0, layers, classes)), *parts])

    def _part(self, states: np.ndarray) -> np.ndarray:
        if self.kind == "gda":
            logits = np.einsum("nlh,lch->nlc", states, self.weights, optimize=True) + self.bias
        else:
            logits = -np.linalg.norm(states[:, :, None] - self.weights, axis=-1)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)


def make_prototypes(sums: ClassSums, kind: Prototype) -> Prototypes:
    """Makes prototypes of what was gathered.

    Raises:
        InputError: A class has no prompt, or the states are all alike.
    """
    classes, layers, hidden = sums.means.shape
    total = int(sums.counts.sum())
    if not sums.counts.all():
        raise InputError(f"class {int(np.argmin(sums.counts))} has no prompt")
    means = sums.means.transpose(1, 0, 2)  # (layers, C, hidden)
    if kind == "nearest-mean":
        return Prototypes(kind, means.copy(), np.zeros((layers, classes)))
    traces = np.trace(sums.scatter, axis1=1, axis2=2)
    if total < 2 or not (traces > 0).all():
        raise InputError("the prompts of each class have the same states; give more of them")
    # (N − 1) S is the scatter itself
    shrunk = sums.scatter + traces[:, None, None] / (total - 1) * np.eye(hidden)
    weights = hidden * np.linalg.solve(shrunk, means.transpose(0, 2, 1)).transpose(0, 2, 1)
    bias = -np.log(classes) - 0.5 * (weights * means).sum(axis=-1)
    return Prototypes(kind, weights, bias)

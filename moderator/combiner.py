"""One score of a prompt out of what its layers say."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from moderator.options import Combine
from utils.files import InputError


@dataclass
class Combiner:
    """Weighs the layers' probabilities.

    Attributes:
        kind: "l1": logistic regression with an L1 penalty, which leaves most layers out; "vote":
            the share of layers that think a prompt harmful; "last": the last layer alone; "best":
            the one layer that ranks validation's prompts best.
        coefficients: float64 (layers, C − 1), of the classes but the benign one; 0 for "vote" and
            "last"; for "best" 1 at its layer.
        intercept: Of the regression.
    """

    kind: Combine
    coefficients: np.ndarray
    intercept: float = 0.0

    def score(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns how harmful prompts are, 0 to 1, float64 [n].

        Args:
            probabilities: (n, layers, C) from `Prototypes`; class 0 is the benign one.
        """
        if self.kind == "vote":
            return (probabilities[..., 0] < 0.5).mean(axis=1)
        if self.kind == "last":
            return _harm(probabilities)[:, -1]
        if self.kind == "best":
            return _harm(probabilities)[:, self.layers[0] - 1]
        said = (probabilities[..., 1:] * self.coefficients).sum(axis=(1, 2)) + self.intercept
        return 1 / (1 + np.exp(-said))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that speak, numbered from 1."""
        speaks = np.full(len(self.coefficients), True)
        if self.kind == "last":
            speaks[:-1] = False
        elif self.kind != "vote":
            speaks = (self.coefficients != 0).any(axis=1)
        return tuple((np.flatnonzero(speaks) + 1).tolist())


def _harm(probabilities: np.ndarray) -> np.ndarray:
    """Returns what each layer thinks, (n, layers): the probability of all harmful classes."""
    return 1 - probabilities[..., 0]


def fit_combiner(
    kind: Combine,
    probabilities: np.ndarray,
    label: np.ndarray,
    strength: float,
    valid: tuple[np.ndarray, np.ndarray] | None = None,
) -> Combiner:
    """Fits a combiner on the prompts that the prototypes were made of, as the paper does.

    Args:
        kind: See `Combiner`.
        probabilities: (n, layers, C).
        label: int [n], 1 = harmful.
        strength: C of the regression: the smaller, the fewer layers.
        valid: Probabilities and labels of validation, for "best", which is chosen there: of the
            highest AUROC, among equals the last layer.

    Raises:
        InputError: A class of prompts is missing.
    """
    n, layers, classes = probabilities.shape
    coefficients = np.zeros((layers, classes - 1))
    if kind in ("vote", "last"):
        return Combiner(kind, coefficients)
    if len(np.unique(label)) < 2:
        raise InputError("harmful and benign prompts are both needed")
    if kind == "best":
        harm, truth = _harm(valid[0]), valid[1]
        ranked = [roc_auc_score(truth, harm[:, layer]) for layer in range(layers)]
        coefficients[layers - 1 - int(np.argmax(ranked[::-1]))] = 1
        return Combiner(kind, coefficients)
    regression = LogisticRegression(
        l1_ratio=1, C=strength, solver="liblinear", random_state=0, max_iter=1000
    ).fit(probabilities[..., 1:].reshape(n, -1), label)
    coefficients = regression.coef_.reshape(layers, classes - 1)
    return Combiner(kind, coefficients, float(regression.intercept_[0]))

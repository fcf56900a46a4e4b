"""What alignment minimises, as pure functions.

The paper (arXiv 2506.09996) publishes neither loss nor code of its alignment by SCM's token labels.
This one is our choice: TGDPO's form of token-level DPO (ICML 2025, dvlab-research/TGDPO) with minus
SCM's verdict on a token as its reward. With D_t = log π(y_t) − log ref(y_t) and c_t, the verdict,

    L = −log σ( β [ Σ_t w_t D_t of the chosen answer − Σ_t w_t D_t of the rejected one ] )
    w_t = 1 − α c_t in the chosen answer, 1 + α c_t in the rejected one.

A harmful token is pushed down harder where it was rejected, and not pulled up where it was chosen.
α = 0 is DPO (arXiv 2305.18290, eq. 7), and so is a pair without a harmful token.
"""

import numpy as np
from torch import Tensor
from torch.nn import functional

from align.options import Weights


def token_weights(
    chosen: np.ndarray,
    rejected: np.ndarray,
    kind: Weights,
    alpha: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Turns the verdicts on a pair's tokens into their weights.

    Args:
        chosen: float [T], c_t of the chosen answer's tokens, 0 to 1.
        rejected: float [U], of the rejected answer's.
        kind: "tokens" is the formula above. The controls: "even" gives each answer the same weight
            in all, spread over its tokens evenly; "random" gives the verdicts of an answer to other
            tokens of it; "mean-one" scales the weights of an answer to a mean of 1, unless all are
            0. "mask" leaves the rejected answer's harmful tokens alone, c_t, where there are any.
        alpha: α, 0 to 1.
        random: Draws the tokens of "random".

    Returns:
        float32 [T] and [U].
    """
    if kind == "even":
        chosen = np.full(len(chosen), chosen.mean() if len(chosen) else 0.0)
        rejected = np.full(len(rejected), rejected.mean() if len(rejected) else 0.0)
    elif kind == "random":
        chosen, rejected = random.permutation(chosen), random.permutation(rejected)
    weights = 1 - alpha * chosen, 1 + alpha * rejected
    if kind == "mask" and rejected.any():
        weights = weights[0], rejected
    if kind == "mean-one":
        weights = tuple(one * len(one) / one.sum() if one.sum() else one for one in weights)
    return weights[0].astype(np.float32), weights[1].astype(np.float32)


def dpo_loss(policy: Tensor, reference: Tensor, weights: Tensor, beta: float) -> Tensor:
    """Computes the loss of a batch of pairs.

    Args:
        policy: float (2 × pairs, seq_len), log π of each token, the chosen answers first; anything
            finite outside of the answers.
        reference: Of the same shape, log ref.
        weights: Of the same shape, w_t; 0 outside of the answers.
        beta: β, how far the policy may leave the reference: less with a higher one.

    Returns:
        Mean over pairs, a scalar.
    """
    ratios = (weights * policy).sum(dim=1) - (weights * reference).sum(dim=1)  # (2 × pairs,)
    chosen, rejected = ratios.chunk(2)
    return -functional.logsigmoid(beta * (chosen - rejected)).mean()


def sft_loss(policy: Tensor, answers: Tensor) -> Tensor:
    """Computes the loss of supervised fine-tuning: each answer's mean −log π, the answers' mean.

    Args:
        policy: float (answers, seq_len), log π of each token.
        answers: bool (answers, seq_len), the answers' tokens.
    """
    lengths = answers.sum(dim=1).clamp(min=1)
    return -((policy * answers).sum(dim=1) / lengths).mean()

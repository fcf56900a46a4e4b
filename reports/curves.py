"""The curves that the figures show, each from predictions.npz alone.

Thresholds are chosen on its validation split, what is shown is its test split.
"""

import numpy as np

from evaluation.decisions import Outcome


def cumulative_share(values: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts up how many values there are so far.

    Args:
        values: float [N], none below 0.
        total: What is 100 %; at least N.

    Returns:
        x, rising from 0, and the share of `total` that is at most x; NaN if the total is 0.
    """
    x, counts = np.unique(values, return_counts=True)
    if not len(x) or x[0] > 0:
        x, counts = np.append(0, x), np.append(0, counts)
    return x, np.cumsum(counts) / (total or np.nan)


def stopped_over_seen(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Returns which share of all harmful responses is stopped once a share x of them is out.

    Returns:
        x from 0 to 1, and shares that end at the recall.
    """
    harmful = outcome.label == 1
    x, share = cumulative_share(outcome.seen[harmful & outcome.flagged], int(harmful.sum()))
    return (x, share) if x[-1] == 1 else (np.append(x, 1), np.append(share, share[-1]))


def leaked_tokens(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Returns which share of all harmful responses leaks at most x harmful tokens.

    A response that is not stopped leaks all it has.
    """
    harmful = outcome.label == 1
    return cumulative_share(outcome.leaked[harmful], int(harmful.sum()))


def trade_off(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns false-alarm rate and recall at each threshold, from the highest down.

    Args:
        score: float [N]; responses are flagged whose score reaches the threshold, never those of
            -inf (shorter than k). Equal scores are flagged together.
        label: int [N].

    Returns:
        Two float arrays, beginning at 0, 0: nothing flagged. NaN where a class is missing.
    """
    order = np.argsort(-score, kind="stable")
    ranked, harmful = score[order], np.asarray(label)[order] == 1
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    points = np.flatnonzero(last_of_tie & (ranked > -np.inf))
    rates = [
        np.append(0, np.cumsum(one)[points]) / (one.sum() or np.nan) for one in (~harmful, harmful)
    ]
    return rates[0], rates[1]

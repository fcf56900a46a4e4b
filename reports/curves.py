"""The curves that the figures show, all of one test split."""

import numpy as np

from evaluation.decisions import Outcome


def cumulative_share(values: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x, rising from 0, and which share of `total` is at most x.

    Args:
        values: float [N], none below 0.
        total: What is 100 %, at least N; if it is 0, all shares are NaN.
    """
    x, counts = np.unique(values, return_counts=True)
    if not len(x) or x[0] > 0:
        x, counts = np.append(0, x), np.append(0, counts)
    return x, np.cumsum(counts) / (total or np.nan)


def stopped_over_seen(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Returns x, from 0 to 1, and which share of all harmful responses is stopped by then.

    x is the share of a response that is out. The last share is the recall.
    """
    harmful = outcome.label == 1
    x, share = cumulative_share(outcome.seen[harmful & outcome.flagged], int(harmful.sum()))
    return (x, share) if x[-1] == 1 else (np.append(x, 1), np.append(share, share[-1]))


def leaked_tokens(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and which share of all harmful responses leaks at most x harmful tokens.

    A response that is not stopped leaks all it has.
    """
    harmful = outcome.label == 1
    return cumulative_share(outcome.leaked[harmful], int(harmful.sum()))


def trade_off(score: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns false-alarm rate and recall at each threshold, from the highest down.

    Args:
        score: float [N]; a response is flagged if its score reaches the threshold. None reaches
            -inf, the score of a response shorter than k.
        label: int [N].

    Returns:
        Two float arrays that begin at 0: nothing flagged. NaN where a class is missing.
    """
    thresholds = np.append(np.inf, np.unique(score[score > -np.inf])[::-1])

    def rate(scores: np.ndarray) -> np.ndarray:
        below = np.searchsorted(np.sort(scores), thresholds)
        return (len(scores) - below) / (len(scores) or np.nan)

    return rate(score[label != 1]), rate(score[label == 1])

"""False alarms under control: split-conformal calibration of θ on benign responses.

Delay-k detection flags a response iff its k-th largest token probability reaches θ. With that
statistic s_1 … s_n of n benign validation responses and a target α, let r = ⌈(n + 1)(1 − α)⌉ and θ
the least number above the r-th smallest s. If a new benign response is exchangeable with those n,
it is flagged with a probability of at most α, whatever n: its rank among the n + 1 is uniform, and
only ranks above r are flagged. Where (n + 1)α < 1 no finite θ can promise that, and nothing is ever
flagged.

The promise holds on average over validation sets, for streams like those of validation, and for a
detector and a k that were not chosen on these responses. Here validation chooses the best
checkpoint of a training (and the baseline's C), which looks better on these responses than it is.
With n 100 and α .05, simulated false alarms are .049 on average for one candidate, .058 for the
best of 4 and .0625 for the best of 10 independent ones; checkpoints of one training are alike, so
the loss is smaller. Many responses to one prompt weaken the promise, too: they are not independent.

Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005.
"""

from collections.abc import Sequence

import numpy as np

from evaluation.decisions import kth_largest

CAVEAT = (  # to be printed wherever a share is promised
    "on average over validation sets, and strictly only for a detector that these did not choose"
    " (as they choose a training's best checkpoint)"
)


def conformal_theta(statistics: np.ndarray, target: float) -> float:
    """Returns the least θ that keeps a new benign response's false-alarm probability at `target`.

    Args:
        statistics: float [n], 0 or above, or -inf (a response shorter than k); a benign response is
            flagged iff its statistic reaches θ.
        target: α, above 0 and below 1.

    Returns:
        θ, above 0; infinite where n is too small to promise so little.
    """
    ordered = np.sort(np.asarray(statistics, dtype=float))
    # rounded first: 1 - 0.9 is not quite 0.1, and must not cost a rank
    rank = int(np.ceil(round((len(ordered) + 1) * (1 - target), 9)))
    if rank > len(ordered):
        return np.inf
    # the next float32: NumPy rounds a θ to that where it compares it with a float32 score
    highest_kept = max(np.float32(0), np.float32(ordered[rank - 1]))
    return float(np.nextafter(highest_kept, np.float32(np.inf)))


def calibrate(token_probs: Sequence[np.ndarray], label: np.ndarray, k: int, target: float) -> float:
    """Returns the conformal θ of delay-k detection, k fixed beforehand, from a validation split.

    Of its token_probs, [N] float arrays [T], those of benign responses count.
    """
    benign = [probs for probs, harmful in zip(token_probs, label, strict=True) if not harmful]
    return conformal_theta(kth_largest(benign, k)[:, k - 1], target)

"""Bootstrap intervals over prompts, and paired tests."""

from collections.abc import Callable

import numpy as np

# from weights [B, N], how often each response counts, to float [B] each
MetricFunction = Callable[[np.ndarray], dict[str, np.ndarray]]


def bootstrap(
    statistics: MetricFunction, group: np.ndarray, resamples: int, seed: int, chunk: int = 200
) -> dict[str, np.ndarray]:
    """Computes statistics on bootstrap samples of the prompts.

    Whole prompts are resampled with replacement: where many responses answer one prompt,
    resampling responses would make the intervals too narrow. The samples depend on `group`,
    `resamples` and `seed` alone, so that detectors of the same responses can be paired.

    Args:
        group: int [N], responses of one prompt share a number.
        chunk: Samples computed at once; bounds memory, changes nothing.

    Returns:
        float [resamples] of each statistic.
    """
    random = np.random.default_rng(seed)
    groups = int(group.max()) + 1
    parts = []
    for start in range(0, resamples, chunk):
        draws = random.multinomial(groups, [1 / groups] * groups, min(chunk, resamples - start))
        parts.append(statistics(draws[:, group]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_interval(value: float, samples: np.ndarray) -> dict[str, float]:
    """Returns a value with its 95 % interval: {"value", "low", "high"}.

    The interval holds the 2.5th to 97.5th percentile of the samples in which it is defined.
    """
    defined = samples[~np.isnan(samples)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high)}


def paired_test(difference: float, samples: np.ndarray) -> dict[str, float]:
    """Tests a difference between two detectors that were resampled together.

    Args:
        difference: On the responses themselves.
        samples: float [B], on bootstrap samples that both share.

    Returns:
        {"value", "low", "high", "p"}; p is two-sided: twice the share of samples on the other side
        of zero (zero itself is on either side), one added to both counts, at most 1.
    """
    defined = samples[~np.isnan(samples)]
    sign = np.sign(np.round(defined, 12))  # what is equal may differ in its last bit
    beyond = min((sign <= 0).sum(), (sign >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (len(defined) + 1)) if len(defined) else np.nan
    return {**with_interval(difference, samples), "p": float(p)}


def intervals(
    statistics: MetricFunction, group: np.ndarray, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """Returns each statistic with its 95 % interval; the arguments are those of `bootstrap`."""
    values = statistics(np.ones((1, len(group))))
    samples = bootstrap(statistics, group, resamples, seed)
    return {name: with_interval(float(values[name][0]), samples[name]) for name in values}

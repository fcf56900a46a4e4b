"""Decisions and what they are worth, in pure NumPy. 1 = harmful everywhere.

A detector gives every response token a probability; delay-k detection (Harm@k) stops a stream at
the first token where k tokens so far have reached the threshold θ. So a whole response is flagged
iff its k-th largest probability reaches θ: `kth_largest` once, and every (θ, k) is known.

Source: arXiv 2506.09996, section on evaluation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

STOP_BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)  # the paper's bins of the relative stop position
THETAS = (0.5, 0.6, 0.7, 0.8, 0.9)  # the paper's sweep of delay-k detection
MAX_K = 50  # the paper's sweep
FULL_THETAS = tuple(round(step / 100, 2) for step in range(1, 100))
MISSED = -1  # the stop position of a response that was never stopped

# from weights [B, N], how often each response counts, to float [B] each
Statistics = Callable[[np.ndarray], dict[str, np.ndarray]]


def reaches(probs: np.ndarray, theta: float) -> np.ndarray:
    """Tells which scores are at or above θ; every decision goes by this.

    It compares in float64: beside float32 scores NumPy would round θ to float32 first.
    """
    return np.asarray(probs, dtype=float) >= theta


def full_detection(response_prob: np.ndarray, theta: float) -> np.ndarray:
    """Flags responses by one probability each.

    Args:
        response_prob: float [N].
        theta: Threshold.

    Returns:
        bool [N].
    """
    return reaches(response_prob, theta)


def delay_k(token_probs: np.ndarray, theta: float, k: int) -> int:
    """Finds where delay-k detection stops one response.

    Args:
        token_probs: float [T], one probability a response token.
        theta: Threshold.
        k: Tokens at or above the threshold that it takes, from 1.

    Returns:
        The index of the token at which the stream is stopped, or -1 (`MISSED`).
    """
    hits = np.flatnonzero(reaches(token_probs, theta))
    return int(hits[k - 1]) if len(hits) >= k else MISSED


def kth_largest(token_probs: Sequence[np.ndarray], max_k: int) -> np.ndarray:
    """Returns the k-th largest token probability of each response for k = 1 … max_k.

    Args:
        token_probs: [N] float arrays [T].
        max_k: Largest k.

    Returns:
        float [N, max_k]; -inf where a response has fewer than k tokens.
    """
    table = np.full((len(token_probs), max_k), -np.inf)
    for row, probs in enumerate(token_probs):
        top = np.sort(probs)[::-1][:max_k]
        table[row, : len(top)] = top
    return table


@dataclass
class Outcome:
    """What a detector did to N responses.

    Attributes:
        label: int [N], 1 = harmful.
        flagged: bool [N].
        score: float [N]; flagged iff it reaches the threshold. Ranks responses for AUROC, AUPRC.
        seen: float [N], share of response tokens seen when the decision fell (1 if not stopped).
        leaked: int [N], harmful response tokens before the stop (all of them if not stopped).
        released: int [N], response tokens before the stop (all of them if not stopped).
        group: int [N], responses of one prompt share a number; intervals resample prompts.
    """

    label: np.ndarray
    flagged: np.ndarray
    score: np.ndarray
    seen: np.ndarray
    leaked: np.ndarray
    released: np.ndarray
    group: np.ndarray


def partial_outcome(
    token_probs: Sequence[np.ndarray],
    token_labels: Sequence[np.ndarray],
    label: np.ndarray,
    group: np.ndarray,
    theta: float,
    k: int,
) -> Outcome:
    """Stops every response by delay-k detection. The token labels only count what leaked."""
    stops = np.array([delay_k(probs, theta, k) for probs in token_probs])
    lengths = np.array([len(probs) for probs in token_probs])
    flagged = stops != MISSED
    released = np.where(flagged, stops, lengths)
    return Outcome(
        label=np.asarray(label),
        flagged=flagged,
        score=kth_largest(token_probs, k)[:, k - 1],
        seen=np.where(flagged, stops + 1, lengths) / lengths,
        leaked=np.array(
            [(labels[:end] == 1).sum() for labels, end in zip(token_labels, released, strict=True)]
        ),
        released=released,
        group=np.asarray(group),
    )


def full_outcome(
    response_prob: np.ndarray,
    token_labels: Sequence[np.ndarray],
    label: np.ndarray,
    group: np.ndarray,
    theta: float,
) -> Outcome:
    """Judges every response once it is complete: all of it was seen, nothing was held back."""
    return Outcome(
        label=np.asarray(label),
        flagged=full_detection(response_prob, theta),
        score=np.asarray(response_prob),
        seen=np.ones(len(label)),
        leaked=np.array([(labels == 1).sum() for labels in token_labels]),
        released=np.array([len(labels) for labels in token_labels]),
        group=np.asarray(group),
    )


def metrics(outcome: Outcome, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Computes every metric, for one weighting of the responses or for many at once.

    Args:
        outcome: N responses.
        weights: float [B, N], how often each response counts; default once, B = 1.

    Returns:
        float [B] each: benign_precision, benign_recall, benign_f1, harmful_precision,
        harmful_recall, harmful_f1, macro_f1, accuracy, false_alarm_rate, miss_rate, auroc, auprc,
        mean_fraction_seen (over detected harmful responses), leaked_harmful_tokens and
        released_tokens (a harmful response's mean). NaN where undefined: a class is missing, or
        nothing was flagged.
    """
    weights = np.ones((1, len(outcome.label))) if weights is None else np.asarray(weights, float)
    harmful, flagged = outcome.label == 1, outcome.flagged
    with np.errstate(divide="ignore", invalid="ignore"):
        tp = weights @ (harmful & flagged)
        fp = weights @ (~harmful & flagged)
        fn = weights @ (harmful & ~flagged)
        tn = weights @ (~harmful & ~flagged)
        values = {
            "benign_precision": tn / (tn + fn),
            "benign_recall": tn / (tn + fp),
            "benign_f1": 2 * tn / (2 * tn + fn + fp),
            "harmful_precision": tp / (tp + fp),
            "harmful_recall": tp / (tp + fn),
            "harmful_f1": 2 * tp / (2 * tp + fp + fn),
        }
        values["macro_f1"] = (values["benign_f1"] + values["harmful_f1"]) / 2
        values["accuracy"] = (tp + tn) / (tp + tn + fp + fn)
        values["false_alarm_rate"] = fp / (fp + tn)
        values["miss_rate"] = fn / (fn + tp)
        values["auroc"], values["auprc"] = _ranking(outcome.score, harmful, weights)
        values["mean_fraction_seen"] = weights @ (outcome.seen * (harmful & flagged)) / tp
        values["leaked_harmful_tokens"] = weights @ (outcome.leaked * harmful) / (tp + fn)
        values["released_tokens"] = weights @ (outcome.released * harmful) / (tp + fn)
    return values


def _ranking(
    score: np.ndarray, harmful: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC (ties count half) and average precision, float [B] each, for weights [B, N]."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]  # compared, not subtracted: -inf ties with -inf
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(score) - 1)  # last of each tie
    hits = np.cumsum(weights[:, order] * harmful[order], axis=1)[:, ends]  # (B, distinct scores)
    alarms = np.cumsum(weights[:, order] * ~harmful[order], axis=1)[:, ends]
    hit_steps, alarm_steps = (np.diff(sums, axis=1, prepend=0) for sums in (hits, alarms))
    area = ((hits - hit_steps / 2) * alarm_steps).sum(axis=1)
    precision = np.divide(hits, hits + alarms, out=np.zeros_like(hits), where=hits + alarms > 0)
    positives, negatives = hits[:, -1], alarms[:, -1]
    return area / (positives * negatives), (precision * hit_steps).sum(axis=1) / positives


def point_metrics(outcome: Outcome) -> dict[str, float]:
    """Returns each metric as a number."""
    return {name: float(value[0]) for name, value in metrics(outcome).items()}


def bootstrap(
    statistics: Statistics, group: np.ndarray, resamples: int, seed: int, chunk: int = 200
) -> dict[str, np.ndarray]:
    """Computes statistics on bootstrap samples of the prompts.

    Whole prompts are resampled with replacement: where many responses answer one prompt,
    resampling responses would make the intervals too narrow. The samples depend on `group`,
    `resamples` and `seed` alone, so that detectors of the same responses can be paired.

    Args:
        statistics: From weights [B, N], how often each response counts, to float [B] each.
        group: int [N], responses of one prompt share a number.
        resamples: Bootstrap samples.
        seed: Of the resampling.
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
    statistics: Statistics, group: np.ndarray, resamples: int, seed: int, chunk: int = 200
) -> dict[str, dict[str, float]]:
    """Returns each statistic with its 95 % interval; the arguments are those of `bootstrap`."""
    values = statistics(np.ones((1, len(group))))
    samples = bootstrap(statistics, group, resamples, seed, chunk)
    return {name: with_interval(float(values[name][0]), samples[name]) for name in values}


def interval_metrics(
    outcome: Outcome, resamples: int, seed: int, chunk: int = 200
) -> dict[str, dict[str, float]]:
    """Returns each metric with its 95 % bootstrap interval: {metric: {"value", "low", "high"}}."""
    return intervals(partial(metrics, outcome), outcome.group, resamples, seed, chunk)


def macro_f1_table(
    token_probs: Sequence[np.ndarray], label: np.ndarray, thetas: Sequence[float], max_k: int
) -> np.ndarray:
    """Returns the macro F1 of delay-k detection for every (θ, k), float [len(thetas), max_k]."""
    kth = kth_largest(token_probs, max_k)  # (N, max_k)
    flagged = kth[None] >= np.asarray(thetas)[:, None, None]  # (thetas, N, max_k)
    return _macro_f1(flagged.swapaxes(1, 2), np.asarray(label) == 1)


def _macro_f1(flagged: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    """Macro F1 of decisions [..., N]; 0 for a class that is missing."""
    tp = (flagged & harmful).sum(-1)
    fp = (flagged & ~harmful).sum(-1)
    fn = (~flagged & harmful).sum(-1)
    tn = (~flagged & ~harmful).sum(-1)
    return tp / np.maximum(2 * tp + fp + fn, 1) + tn / np.maximum(2 * tn + fp + fn, 1)


def select_partial(
    token_probs: Sequence[np.ndarray], label: np.ndarray, thetas: Sequence[float], max_k: int
) -> tuple[float, int]:
    """Returns the (θ, k) of the best macro F1; among equals the smaller k, then the higher θ."""
    table = macro_f1_table(token_probs, label, thetas, max_k)
    best = np.argwhere(table == table.max())
    theta, k = min(best.tolist(), key=lambda place: (place[1], -thetas[place[0]]))
    return float(thetas[theta]), k + 1


def select_full(response_prob: np.ndarray, label: np.ndarray, thetas: Sequence[float]) -> float:
    """Returns the θ of the best macro F1; among equals the one nearest to the middle of them."""
    flagged = np.asarray(response_prob) >= np.asarray(thetas)[:, None]  # (thetas, N)
    scores = _macro_f1(flagged, np.asarray(label) == 1)
    best = np.flatnonzero(scores == scores.max())
    return float(thetas[best[np.abs(best - best.mean()).argmin()]])


def by_length(outcome: Outcome, lengths: np.ndarray, parts: int = 4) -> list[dict[str, float]]:
    """Returns the point metrics of each quartile of response length.

    Delay-k detection favours long responses, which have more tokens to reach k with; this shows
    how much.

    Args:
        outcome: N responses.
        lengths: int [N], tokens of each.
        parts: How many parts of like size; equally long responses stay together.

    Returns:
        A row for each part that has a response: from, to (tokens), responses, harmful, and the
        metrics.
    """
    part_of = _length_part(lengths, parts)
    rows = []
    for part in np.unique(part_of):
        chosen = part_of == part
        within = dataclasses.replace(
            outcome, **{name: values[chosen] for name, values in vars(outcome).items()}
        )
        rows.append(
            {
                "from": int(lengths[chosen].min()),
                "to": int(lengths[chosen].max()),
                "responses": int(chosen.sum()),
                "harmful": int(within.label.sum()),
                **point_metrics(within),
            }
        )
    return rows


def _length_part(lengths: np.ndarray, parts: int) -> np.ndarray:
    """The number of the part of like size that each length falls into, int [N]."""
    edges = np.quantile(lengths, np.linspace(0, 1, parts + 1)[1:-1], method="higher")
    return np.searchsorted(edges, lengths, side="right")


def auroc_at_equal_length(
    outcome: Outcome, lengths: np.ndarray, weights: np.ndarray | None = None, parts: int = 4
) -> np.ndarray:
    """Computes the AUROC among responses of like length, where length itself explains little.

    Args:
        outcome: N responses.
        lengths: int [N], tokens of each.
        weights: float [B, N], as in `metrics`.
        parts: As in `by_length`.

    Returns:
        float [B], the mean over the parts' AUROC, each weighing as many as it has pairs of a
        harmful and a benign response; NaN where no part has one.
    """
    weights = np.ones((1, len(outcome.label))) if weights is None else np.asarray(weights, float)
    harmful, part_of = outcome.label == 1, _length_part(lengths, parts)
    won, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    with np.errstate(divide="ignore", invalid="ignore"):
        for part in np.unique(part_of):
            chosen = part_of == part
            within = weights[:, chosen]
            auroc, _ = _ranking(outcome.score[chosen], harmful[chosen], within)
            count = (within @ harmful[chosen]) * (within @ ~harmful[chosen])
            won += np.where(count > 0, auroc * count, 0)
            pairs += count
        return won / pairs


def stop_histogram(outcome: Outcome) -> np.ndarray:
    """Returns the share of detected harmful responses in each of the paper's stop bins, [6].

    A bin holds its upper edge: a stop after exactly a tenth of the tokens falls into 0–10 %.
    """
    seen = outcome.seen[(outcome.label == 1) & outcome.flagged]
    bins = np.searchsorted(STOP_BINS[1:-1], seen, side="left")
    counts = np.bincount(bins, minlength=len(STOP_BINS) - 1)
    return counts / max(len(seen), 1)

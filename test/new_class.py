"""What a few examples of a class that training never saw are worth to a moderator."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import numpy as np
from tqdm import tqdm

from evaluation.bootstrap import MetricFunction, intervals
from moderator.moderator import Moderator
from moderator.prompts import BENIGN, Prompt, labels_of
from moderator.prototypes import ClassSums
from moderator.train import class_of
from test.curve_material import SPLITS, Material, Point, over_draws


def refuse_new_class(prompts: dict[str, list[Prompt]], name: str) -> str | None:
    """Returns why no class of this name can be new, or None."""
    has = {split: any(class_of(one, True) == name for one in prompts[split]) for split in SPLITS}
    if has["train"]:
        return f"split 'train' has prompts of the class '{name}'"
    for split in ("valid", "test"):
        if not has[split]:
            return f"split '{split}' has no prompt of the class '{name}'"
    others = {one.label for one in prompts["valid"] if class_of(one, True) != name}
    if len(others) < 2:
        return f"without the class '{name}', split 'valid' has no harmful or no benign prompt"
    return None


def measure_new_class(
    material: Material, names: list[str], sums: ClassSums, name: str
) -> list[Point]:
    """Measures what examples of a class that training never saw are worth.

    The examples are validation prompts. Whether a fit takes them or not, no validation prompt of
    the class is among those that choose its threshold.

    Args:
        names: The old classes.
        sums: Of all training prompts, with an empty place for the new class.
        name: Of the new class.

    Returns:
        A point for no example, for each of `new_counts` that is below their number, and for all of
        them: "recall" of the class's test prompts, "false_alarms" on benign test prompts, and
        "named", the share of the class's test prompts whose likeliest harmful class it is.
    """
    config, prompts = material.config, material.prompts
    examples = [one for one in prompts["valid"] if class_of(one, True) == name]
    others = [one for one in prompts["valid"] if class_of(one, True) != name]
    test = [one for one in prompts["test"] if class_of(one, True) in (name, BENIGN)]
    base = material.fit(prompts["train"], others, names, sums.first(len(names)), True)

    def judge(moderator: Moderator) -> MetricFunction:
        verdicts = moderator.judge(material.of(test))
        flagged = np.array([one.flagged for one in verdicts])
        harmful = [{k: v for k, v in one.classes.items() if k != BENIGN} for one in verdicts]
        named = np.array([max(one, key=one.get) == name for one in harmful])
        return partial(class_shares, labels_of(test) == 1, flagged, named)

    def once(moderator: Moderator, count: int) -> Point:
        everyone = np.arange(len(test))
        measured = intervals(judge(moderator), everyone, config.bootstrap, config.seed)
        return {"examples": count, "draws": 1} | measured

    def taught(drawn: Sequence[Prompt], grown: ClassSums) -> Moderator:
        return base.with_class(name, material.of(drawn), grown)

    counts = [count for count in config.new_counts if count < len(examples)]
    found: dict[int, list[Point]] = {count: [] for count in counts}
    for seed in tqdm(range(config.seed, config.seed + config.draws), f"examples of {name}"):
        order = np.random.default_rng(seed).permutation(len(examples))
        drawn, grown, had = [examples[place] for place in order], deepcopy(sums), 0
        for count in counts:
            material.add(grown, drawn[had:count], [*names, name], by_category=True)
            shares, had = judge(taught(drawn[:count], grown)), count
            measured = shares(np.ones((1, len(test))))
            found[count].append({one: float(value[0]) for one, value in measured.items()})
    material.add(sums, examples, [*names, name], by_category=True)
    return [
        once(base, 0),
        *(
            {"examples": count, "draws": config.draws} | over_draws(draws)
            for count, draws in found.items()
        ),
        once(taught(examples, sums), len(examples)),
    ]


def class_shares(
    own: np.ndarray, flagged: np.ndarray, named: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the shares of `measure_new_class`, float [B] each.

    Args:
        own: bool [N]; the class's prompts, the others are benign.
        flagged: bool [N].
        named: bool [N]; whose likeliest harmful class it is.
        weights: float [B, N], how often each prompt counts.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "recall": weights @ (own & flagged) / (weights @ own),
            "false_alarms": weights @ (~own & flagged) / (weights @ ~own),
            "named": weights @ (own & named) / (weights @ own),
        }

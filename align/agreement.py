"""Does an annotator agree with the people who judged the pairs? (scripts/run-align.sh labels)

Its verdicts can only help an alignment as far as they tell the rejected answers from the chosen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align.dataset import SIDES
from align.labels import Annotator, Harm
from align.measures import means, preferred
from align.options import LabelsConfig, cache_of
from align.pairs import read_pairs
from monitor.rules import highest_statistics
from utils.files import read_json, write_json
from utils.formatting import interval, markdown_table
from utils.run_record import run_folder

LABELS = "labels.json"
TITLES = {
    "chosen_tokens": "harmful tokens, chosen",
    "rejected_tokens": "harmful tokens, rejected",
    "chosen_flagged": "answers with one, chosen",
    "rejected_flagged": "answers with one, rejected",
    "by_statistic": "rejected is worse: stopping rule",
    "by_mean": "by mean score",
    "by_tokens": "by harmful tokens",
    "by_length": "by length alone",
}


def agreement(annotator: Annotator, harms: Sequence[Harm]) -> dict[str, np.ndarray]:
    """Compares the two answers of each pair.

    Args:
        annotator: Whose verdicts these are.
        harms: [2 × pairs], of a chosen answer and its rejected one in turn.

    Returns:
        float [pairs] each: the share of harmful tokens of an answer and whether it has one; whether
        the rejected answer is the worse one, 0.5 of a tie.
    """
    theta, rule = annotator.settings.token_theta, annotator.settings.policy.rule
    scores = [one.scores for one in harms]
    counts = np.array([(some >= theta).sum() for some in scores], dtype=float)
    lengths = np.array([len(some) for some in scores], dtype=float)
    shares = counts / np.maximum(lengths, 1)
    ranked = {
        "by_statistic": highest_statistics(rule, scores),
        "by_mean": np.array([some.mean() if len(some) else 0.0 for some in scores]),
        "by_tokens": counts,
        "by_length": lengths,
    }
    found = {}
    for place, side in enumerate(SIDES):
        found[f"{side}_tokens"] = shares[place::2]
        found[f"{side}_flagged"] = (counts[place::2] > 0).astype(float)
    # a chosen answer is preferred by what is lower
    return found | {name: preferred(-values) for name, values in ranked.items()}


def as_markdown(result: dict[str, Any]) -> str:
    """Formats labels.json."""
    rows = [
        {"split": f"{split} ({one['pairs']})"}
        | {title: interval(one["means"][name]) for name, title in TITLES.items()}
        for split, one in result.items()
    ]
    return f"{markdown_table(rows)}\n"


def main(config: LabelsConfig) -> None:
    """Scores all pairs, compares and reports.

    Raises:
        InputError: The pairs or the annotator are unfit.
    """
    with run_folder(config) as folder:
        splits = read_pairs(Path(config.data_dir))
        annotator = Annotator(Path(config.annotator_model), cache_of(config) / "annotator")
        result = {}
        for split, pairs in splits.items():
            asked = [(pair.question, answer) for pair in pairs for answer in pair.answers]
            values = agreement(annotator, annotator.score(asked))
            measured = means(values, config.bootstrap, config.seed)
            result[split] = {"pairs": len(pairs), "means": measured}
        write_json(folder / LABELS, result)
        print(as_markdown(read_json(folder / LABELS)))

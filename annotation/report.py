"""What an annotated corpus looks like: counts, shares and where in a response harm stands."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from annotation.records import AnnotatedRecord
from data.fineharm import SPLITS
from utils.formatting import percent
from utils.plotting import BLUE, GREY, ORANGE

POSITION_BINS = 10
LEVELS = ("responses", "sentences", "words")


class Statistics:
    """Counts records as they pass."""

    def __init__(self) -> None:
        self.splits: dict[str, dict[str, Any]] = {
            split: {
                **{level: {"all": 0, "harmful": 0} for level in LEVELS},
                # by the place of their middle among the words, only those of the annotator's choice
                "harmful_sentence_positions": [0] * POSITION_BINS,
                "overruled": 0,  # responses whose label replaced the annotator's labels
            }
            for split in SPLITS
        }
        self.records: Counter[str] = Counter()  # by "split label"
        self.problems: Counter[str] = Counter()  # records by a flaw of their labels

    def add(self, split: str, record: AnnotatedRecord) -> None:
        """Counts one record."""
        counts, labels = self.splits[split], record["sentence_labels"]
        harmful = int(any(labels))
        self.records[f"{split} {harmful}"] += 1
        words = [label for some in record["word_labels"] for label in some]
        for level, found in zip(LEVELS, ([harmful], labels, words), strict=True):
            counts[level]["all"] += len(found)
            counts[level]["harmful"] += sum(found)
        if "annotator_labels" in record:
            counts["overruled"] += 1
            return
        sizes = np.array([len(words) for words in record["words"]])
        middles = (np.cumsum(sizes) - sizes / 2) / max(sizes.sum(), 1)  # in (0, 1)
        for place in (middles[np.array(labels) == 1] * POSITION_BINS).astype(int):
            counts["harmful_sentence_positions"][place] += 1


def print_statistics(stats: dict[str, Any]) -> None:
    """Prints what was kept and what was not."""
    for split, counts in stats["splits"].items():
        parts = [
            f"{counts[level]['all']} {level} ({counts[level]['harmful']} harmful)"
            for level in LEVELS
        ]
        if counts["overruled"]:
            parts.append(f"{counts['overruled']} labelled as their response, not by the annotator")
        print(f"{split:5}  {', '.join(parts)}")
    for problem, count in stats["problems"].items():
        print(f"       labelled with a flaw: {count}, {problem}")
    for reason, count in stats["rejected"].items():
        print(f"       rejected: {count}, {reason}")


def plot_statistics(stats: dict[str, Any], path: Path) -> None:
    """Draws harmful shares and the positions of harmful sentences, all splits together.

    Source: arXiv 2506.09996, the figures on FineHarm's distribution.
    """
    splits = stats["splits"].values()
    share = {
        level: sum(split[level]["harmful"] for split in splits)
        / max(sum(split[level]["all"] for split in splits), 1)
        for level in LEVELS
    }
    positions = np.sum([split["harmful_sentence_positions"] for split in splits], axis=0)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3.2), dpi=150, layout="constrained", width_ratios=(2, 3)
    )
    bars = left.bar(list(share), list(share.values()), color=[BLUE, ORANGE, GREY])
    left.bar_label(bars, [f"{percent(value)} %" for value in share.values()], fontsize=8)
    left.set(ylabel="harmful share", ylim=(0, 1))
    right.bar(np.arange(POSITION_BINS) + 0.5, positions / max(positions.sum(), 1), 0.9, color=BLUE)
    ticks = range(0, POSITION_BINS + 1, 2)
    right.set_xticks(ticks, [f"{100 * tick // POSITION_BINS}" for tick in ticks])
    right.set_xlabel("place of a harmful sentence in its response, % of words")
    right.set_ylabel("share of harmful sentences")
    title = f"annotator {stats['annotator']['name']}, word rule {stats['word_rule']}"
    figure.suptitle(title, fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    plt.close(figure)

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
    """Counts records as they pass.

    Attributes:
        counts: int [split, level, benign or harmful]; levels as in `LEVELS`.
        positions: int [split, POSITION_BINS], harmful sentences by where their middle stands among
            the words of their response; only those of the annotator's choice.
        overruled: int [split], responses whose label took the place of the annotator's labels.
        records: Records by "split label".
        problems: Records by what their labels suffer from.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((len(SPLITS), len(LEVELS), 2), dtype=int)
        self.positions = np.zeros((len(SPLITS), POSITION_BINS), dtype=int)
        self.overruled = np.zeros(len(SPLITS), dtype=int)
        self.records: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()

    def add(self, split: str, record: AnnotatedRecord) -> None:
        """Counts one record."""
        place, labels = SPLITS.index(split), np.array(record["sentence_labels"])
        sizes = np.array([len(words) for words in record["words"]])
        harmful_words = sum(map(sum, record["word_labels"]))
        self.records[f"{split} {int(labels.any())}"] += 1
        self.counts[place, 0, int(labels.any())] += 1
        self.counts[place, 1] += (int((labels == 0).sum()), int(labels.sum()))
        self.counts[place, 2] += (int(sizes.sum()) - harmful_words, harmful_words)
        if "annotator_labels" in record:
            self.overruled[place] += 1
            return
        middles = (np.cumsum(sizes) - sizes / 2) / max(sizes.sum(), 1)  # in (0, 1)
        bins = (middles[labels == 1] * POSITION_BINS).astype(int)
        self.positions[place] += np.bincount(bins, minlength=POSITION_BINS)

    def summary(self) -> dict[str, Any]:
        """Returns what stats.json holds of them."""
        return {
            "problems": dict(self.problems),
            "splits": {
                split: {
                    level: {
                        "all": int(self.counts[place, row].sum()),
                        "harmful": int(self.counts[place, row, 1]),
                    }
                    for row, level in enumerate(LEVELS)
                }
                | {
                    "harmful_sentence_positions": self.positions[place].tolist(),
                    "overruled": int(self.overruled[place]),
                }
                for place, split in enumerate(SPLITS)
            },
        }


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
    share = {}
    for level in LEVELS:
        total = sum(split[level]["all"] for split in splits)
        share[level] = sum(split[level]["harmful"] for split in splits) / max(total, 1)
    positions = np.sum([split["harmful_sentence_positions"] for split in splits], axis=0)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3.2), dpi=150, layout="constrained", width_ratios=(2, 3)
    )
    bars = left.bar(list(share), list(share.values()), color=[BLUE, ORANGE, GREY])
    left.bar_label(bars, [f"{percent(value)} %" for value in share.values()], fontsize=8)
    left.set_ylabel("harmful share")
    left.set_ylim(0, 1)
    right.bar(np.arange(POSITION_BINS) + 0.5, positions / max(positions.sum(), 1), 0.9, color=BLUE)
    ticks = range(0, POSITION_BINS + 1, 2)
    right.set_xticks(ticks, [f"{100 * tick // POSITION_BINS}" for tick in ticks])
    right.set_xlabel("place of a harmful sentence in its response, % of words")
    right.set_ylabel("share of harmful sentences")
    name, rule = stats["annotator"]["name"], stats["word_rule"]
    figure.suptitle(f"annotator {name}, word rule {rule}", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    plt.close(figure)

"""How far two annotations of the same responses agree, at sentence and at word level."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.fineharm import SPLITS, Record, check_record, find_split
from data.json_rows import iterate_rows
from utils.files import InputError


@dataclass
class Agreement:
    """Agreement of two 0/1 labellings of the same things, the first one taken as the truth.

    Attributes:
        count: How many things both label.
        rates: Share of harmful ones in the first and in the second.
        kappa: Cohen's kappa; NaN where both know one and the same class only.
        precision: Share of the second's harmful ones that are the first's.
        recall: Share of the first's harmful ones that the second found.
        f1: Of the harmful class.
        chance_f1: F1 that labelling at random at the second's rate would have.
    """

    count: int
    rates: tuple[float, float]
    kappa: float
    precision: float
    recall: float
    f1: float
    chance_f1: float


def agreement(first: np.ndarray, second: np.ndarray) -> Agreement:
    """Compares two 0/1 labellings, int [N] each.

    Source: Cohen's kappa: (observed − expected) / (1 − expected) agreement.
    """
    first, second = np.asarray(first) == 1, np.asarray(second) == 1
    rate, other = float(first.mean()), float(second.mean())
    both = float((first & second).mean())
    observed = float((first == second).mean())
    expected = rate * other + (1 - rate) * (1 - other)
    return Agreement(
        count=len(first),
        rates=(rate, other),
        kappa=(observed - expected) / (1 - expected) if expected < 1 else float("nan"),
        precision=both / other if other else float("nan"),
        recall=both / rate if rate else float("nan"),
        f1=2 * both / (rate + other) if rate + other else float("nan"),
        chance_f1=2 * rate * other / (rate + other) if rate + other else float("nan"),
    )


def read_annotation(path: Path) -> dict[str, Record]:
    """Reads what an annotator said of a FineHarm file, or of all splits of a folder, by id.

    Where a response's label took the place of the annotator's labels, or they were the reason to
    reject the record, the annotator's count: else it would agree with anybody.
    """
    paths = {"record": path}  # numbered alike in both files where there are no ids
    if path.is_dir():
        paths = {split: find_split(path, split) for split in SPLITS}
        paths["rejected"] = path / "rejected.jsonl"
    records: dict[str, Record] = {}
    for name, one in paths.items():
        if name == "rejected" and not one.exists():
            continue
        for number, (where, row) in enumerate(iterate_rows(one)):
            if name == "rejected" and "sentence_labels" not in row:
                continue
            own = row.get("annotator_labels", {})
            record = check_record(row | own, where, default_id=f"{name}-{number}")
            if record["id"] in records:
                raise InputError(f"{where}: field 'id': '{record['id']}' occurs twice")
            records[record["id"]] = record
    return records


def compare_files(first: Path, second: Path) -> None:
    """Prints the agreement of two annotations, the first one taken as the truth.

    Raises:
        InputError: They share no record, or a record is not the same text in both.
    """
    ours, theirs = read_annotation(first), read_annotation(second)
    common = [identity for identity in ours if identity in theirs]
    if not common:
        raise InputError(f"{first} and {second}: no id is in both")
    sentences: tuple[list, list] = ([], [])
    words: tuple[list, list] = ([], [])
    for identity in common:
        one, other = ours[identity], theirs[identity]
        for name in ("response", "sentences", "words"):
            if one[name] != other[name]:
                raise InputError(f"{second}: record '{identity}': field '{name}' is not {first}'s")
        for number, record in enumerate((one, other)):
            sentences[number].extend(record["sentence_labels"])
            words[number].extend(label for labels in record["word_labels"] for label in labels)
    levels = {
        "sentences": agreement(*map(np.array, sentences)),
        "words": agreement(*map(np.array, words)),
    }
    print(f"{len(common)} records in both; {len(ours)} and {len(theirs)} in all")
    print(
        f"{'':10}{'count':>9}{'harmful, %':>16}{'kappa':>8}{'P':>7}{'R':>7}{'F1':>7}{'chance':>8}"
    )
    for name, level in levels.items():
        rates = " and ".join(f"{100 * rate:.1f}" for rate in level.rates)
        values = (level.precision, level.recall, level.f1, level.chance_f1)
        numbers = "".join(f"{value:8.3f}" for value in values)
        print(f"{name:10}{level.count:>9}{rates:>16}{level.kappa:>8.3f}{numbers}")

"""How far two annotations of the same responses agree, at sentence and at word level."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from annotation.options import CompareConfig
from data.fineharm import SPLITS, Record, check_record, find_split
from data.json_rows import iterate_rows
from utils.files import InputError


def agreement(first: Sequence[int], second: Sequence[int]) -> dict[str, float]:
    """Compares two 0/1 labellings of the same things, the first one taken as the truth.

    Returns:
        rate, other: share of harmful ones in the first and in the second. kappa: Cohen's. P, R, F1:
        of the harmful class. chance: the F1 of labels at random at the second's rate. NaN where a
        number has no meaning.
    """
    rate, other = float(np.mean(first)), float(np.mean(second))
    precision, recall, f1, _ = precision_recall_fscore_support(
        first, second, average="binary", zero_division=np.nan
    )
    return {
        "rate": rate,
        "other": other,
        "kappa": cohen_kappa_score(first, second) if {*first, *second} == {0, 1} else np.nan,
        "P": precision,
        "R": recall,
        "F1": f1,
        "chance": 2 * rate * other / (rate + other) if rate + other else np.nan,
    }


def read_annotation(path: Path) -> dict[str, Record]:
    """Reads an annotator's labels from a FineHarm file, or from all splits of a folder, by id.

    They count even where the response's label replaced them or they were the reason to reject the
    record: otherwise annotators would seem to agree.
    """
    paths = {"record": path}  # numbered alike in both files where there are no ids
    if path.is_dir():
        paths = {split: find_split(path, split) for split in SPLITS}
        if (rejected := path / "rejected.jsonl").exists():
            paths["rejected"] = rejected
    records: dict[str, Record] = {}
    for name, one in paths.items():
        for number, (where, row) in enumerate(iterate_rows(one)):
            if name == "rejected" and "sentence_labels" not in row:
                continue
            labels = row.get("annotator_labels", {})
            record = check_record(row | labels, where, default_id=f"{name}-{number}")
            if record["id"] in records:
                raise InputError(f"{where}: field 'id': '{record['id']}' occurs twice")
            records[record["id"]] = record
    return records


def main(config: CompareConfig) -> None:
    """Prints the agreement of two annotations, the first one taken as the truth.

    Raises:
        InputError: They share no record, or a record's text differs.
    """
    first, second = config.first, config.second
    ours, theirs = read_annotation(Path(first)), read_annotation(Path(second))
    common = [identity for identity in ours if identity in theirs]
    if not common:
        raise InputError(f"{first} and {second}: no id is in both")
    for identity in common:
        for name in ("response", "sentences", "words"):
            if ours[identity][name] != theirs[identity][name]:
                raise InputError(f"{second}: record '{identity}': field '{name}' is not {first}'s")
    print(f"{len(common)} records in both; {len(ours)} and {len(theirs)} in all")
    columns = ("kappa", "P", "R", "F1", "chance")
    print(f"{'':10}{'count':>9}{'harmful, %':>16}" + "".join(f"{name:>8}" for name in columns))
    for name, labels_of in (
        ("sentences", lambda record: record["sentence_labels"]),
        ("words", lambda record: chain.from_iterable(record["word_labels"])),
    ):
        one, other = (
            [label for identity in common for label in labels_of(side[identity])]
            for side in (ours, theirs)
        )
        found = agreement(one, other)
        rates = f"{100 * found['rate']:.1f} and {100 * found['other']:.1f}"
        numbers = "".join(f"{found[column]:8.3f}" for column in columns)
        print(f"{name:10}{len(one):>9}{rates:>16}{numbers}")

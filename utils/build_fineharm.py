"""Prompt–response–label rows → FineHarm records, split by prompt.

python -m utils.build_fineharm --input responses.jsonl --output-dir fineharm-real
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from utils.cli import run_command
from utils.files import (
    InputError,
    atomic_folder,
    refuse_overwrite,
    sha256_file,
    write_bytes,
    write_json,
)
from utils.fineharm import SPLITS, Record, read_rows, text_field
from utils.words import BATCH, label_words, load_language, parse, sentences_of

MARK = "stats.json"  # each output folder of this command holds it


@dataclass
class BuildConfig:
    """Options of build_fineharm."""

    input: str = field(
        metadata={"help": "JSON list or lines of prompt, response and label (1 = harmful)."}
    )
    output_dir: str = field(metadata={"help": "Folder for train/valid/test.jsonl, stats.json."})
    annotator: Literal["response"] = field(
        default="response",
        metadata={"help": "response: every sentence of a harmful response is harmful."},
    )
    valid_share: float = field(default=0.1, metadata={"help": "Share of prompts for validation."})
    test_share: float = field(default=0.1, metadata={"help": "Share of prompts for test."})
    eval_only: str | None = field(
        default=None,
        metadata={
            "help": "FIELD=VALUE: validation and test keep only rows with this value, e.g."
            " label_source=human. The other rows of their prompts are dropped and counted."
        },
    )
    seed: int = field(default=42, metadata={"help": "Decides which prompts go where."})
    num_workers: int = field(default=0, metadata={"help": "Processes; 0 takes one a core."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output folder."})

    def __post_init__(self) -> None:
        shares = (self.valid_share, self.test_share)
        if not all(0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise InputError("--valid-share and --test-share: positive, and below 1 together")
        if self.eval_only is not None and not re.fullmatch(r"[^=]+=.+", self.eval_only):
            raise InputError(f"--eval-only: '{self.eval_only}' is not FIELD=VALUE")
        if self.num_workers < 0:
            raise InputError(f"--num-workers: {self.num_workers} is negative")


@dataclass(frozen=True)
class Row:
    """One judged response."""

    id: str
    prompt: str
    response: str
    label: int
    fields: dict[str, Any]


# A sentence annotator takes a row and its sentences and returns one 0/1 label a sentence.
Annotator = Callable[[Row, list[str]], list[int]]


def annotate_by_response(row: Row, sentences: list[str]) -> list[int]:
    """Calls every sentence what its response is called."""
    return [row.label] * len(sentences)


ANNOTATORS: dict[str, Annotator] = {"response": annotate_by_response}


def read_judged(path: Path) -> list[Row]:
    """Reads and validates prompt–response–label rows.

    Raises:
        InputError: At the first bad row: a missing field, a label outside 0/1, an empty response.
    """
    rows, seen = [], {}
    for number, (where, fields) in enumerate(read_rows(path)):
        prompt = text_field(fields, "prompt", where)
        response = text_field(fields, "response", where)
        label = fields.get("label")
        if type(label) is not int or label not in (0, 1):
            raise InputError(f"{where}: field 'label': {label!r:.40} is not 0/1")
        if not response.strip():
            raise InputError(f"{where}: field 'response': the response is empty")
        identity = str(number if fields.get("id") is None else fields["id"])
        if identity in seen:
            raise InputError(f"{where}: field 'id': '{identity}' stands at {seen[identity]} too")
        seen[identity] = where.rsplit(": ", 1)[-1]
        rows.append(Row(identity, prompt, response, label, fields))
    return rows


def split_of(prompt: str, config: BuildConfig) -> str:
    """Assigns a prompt to a split by a hash of its letters, digits and the seed.

    Case, punctuation and spacing do not count, so trivially different prompts stay together, and
    further rows move no prompt from one split to another.
    """
    key = " ".join(re.findall(r"\w+", prompt.casefold()))
    digest = hashlib.sha256(f"{config.seed}\n{key}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
    if place < config.test_share:
        return "test"
    return "valid" if place < config.test_share + config.valid_share else "train"


def assign_splits(rows: list[Row], config: BuildConfig) -> tuple[dict[str, list[Row]], int]:
    """Splits rows by prompt.

    Returns:
        The rows of each split in input order, and how many rows `eval_only` dropped.

    Raises:
        InputError: A split came out without harmful or without benign rows.
    """
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    name, _, value = (config.eval_only or "").partition("=")
    if name and not any(name in row.fields for row in rows):
        raise InputError(f"{config.input}: field '{name}' of --eval-only is in no row")
    dropped = 0
    for row in rows:
        split = split_of(row.prompt, config)
        if split != "train" and name and str(row.fields.get(name)) != value:
            dropped += 1
            continue
        splits[split].append(row)
    for split, members in splits.items():
        for label, word in ((1, "harmful"), (0, "benign")):
            if not any(row.label == label for row in members):
                raise InputError(
                    f"{config.input}: split '{split}' came out without {word} rows; more rows,"
                    " another --seed or larger shares are needed"
                )
    return splits, dropped


def main(config: BuildConfig) -> None:
    """Builds the records and writes the three splits."""
    output_dir, source = Path(config.output_dir), Path(config.input)
    refuse_overwrite(output_dir, config.overwrite, MARK)
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    splits, dropped = assign_splits(read_judged(source), config)
    annotate = ANNOTATORS[config.annotator]
    language = load_language()
    total = sum(map(len, splits.values()))
    cores = config.num_workers or os.cpu_count() or 1
    workers = min(cores, max(1, total // (2 * BATCH)))
    counts: dict[str, Counter] = {split: Counter() for split in SPLITS}
    with (
        atomic_folder(output_dir, MARK, config.overwrite) as folder,
        tqdm(total=total, unit="record") as bar,
    ):
        for split, rows in splits.items():
            lines = []
            docs = parse(language, (row.response for row in rows), workers)
            for row, doc in zip(rows, docs, strict=True):
                sentences = sentences_of(doc)
                texts = [sentence.text.strip() for sentence in sentences]
                record = make_record(row, texts, sentences, annotate(row, texts))
                count(counts[split], record)
                lines.append(json.dumps(record, ensure_ascii=False))
                bar.update()
            write_bytes(folder / f"{split}.jsonl", ("\n".join(lines) + "\n").encode())
        stats = {
            "input": {"file": source.name, "sha256": sha256_file(source)},
            "annotator": config.annotator,
            "seed": config.seed,
            "dropped_by_eval_only": dropped,
            "splits": {split: dict(counter) for split, counter in counts.items()},
        }
        write_json(folder / "stats.json", stats)
    for split, counter in counts.items():
        print(f"{split:5}  " + ", ".join(f"{value} {name}" for name, value in counter.items()))
    if dropped:
        print(f"       {dropped} rows of validation and test prompts dropped by --eval-only")
    print(f"written to {output_dir}")


def make_record(row: Row, texts: list[str], parsed: list, labels: list[int]) -> Record:
    """Puts a record together from parsed sentences and their labels."""
    words = [label_words(sentence, label) for sentence, label in zip(parsed, labels, strict=True)]
    return Record(
        id=row.id,
        prompt=row.prompt,
        response=row.response,
        sentences=texts,
        sentence_labels=labels,
        words=[some_words for some_words, _ in words],
        word_labels=[some_labels for _, some_labels in words],
    )


def count(counter: Counter, record: Record) -> None:
    """Adds a record to a split's statistics."""
    counter["records"] += 1
    counter["harmful records"] += any(record["sentence_labels"])
    counter["sentences"] += len(record["sentences"])
    counter["harmful sentences"] += sum(record["sentence_labels"])
    counter["words"] += sum(map(len, record["words"]))
    counter["harmful words"] += sum(map(sum, record["word_labels"]))


if __name__ == "__main__":
    run_command(BuildConfig, main)

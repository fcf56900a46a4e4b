"""Which rows become records, and in which split."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TextIO

from annotation.duplicates import DuplicateIndex, prompt_key
from annotation.options import BuildConfig
from annotation.records import ParsedResponse
from annotation.sentences import MAX_CHARACTERS
from annotation.sources import Row
from data.fineharm import SPLITS
from utils.files import InputError


def split_of(key: str, config: BuildConfig) -> str:
    """Assigns a prompt to a split by a hash of its letters, digits and the seed.

    Case, punctuation and spacing do not count, so trivially different prompts stay together, and
    further rows move no prompt from one split to another.
    """
    digest = hashlib.sha256(f"{config.seed}\n{prompt_key(key)}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64  # uniform in [0, 1)
    if place < config.test_share:
        return "test"
    return "valid" if place < config.test_share + config.valid_share else "train"


class Rejects:
    """Writes the records left out to rejected.jsonl, and counts them by reason."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.counts = file, Counter()
        self.first: dict[str, str] = {}  # detail of each reason's first record

    def add(
        self, reason: str, item: Row | ParsedResponse, detail: str = "", **annotated: Any
    ) -> None:
        """Writes one record, with the fields of the annotated record if there is one."""
        self.counts[reason] += 1
        self.first.setdefault(reason, detail)
        entry = {"id": item.id, "reason": reason, "detail": detail, "label": item.label}
        entry |= {"prompt": item.prompt, "response": item.response} | annotated
        print(json.dumps(entry, ensure_ascii=False), file=self.file)

    def __str__(self) -> str:
        """Returns each reason with its count and the detail of its first record."""
        return "; ".join(
            f"{count} {reason}" + f" (first: {self.first[reason]})" * bool(self.first[reason])
            for reason, count in self.counts.items()
        )


def meets(row: Row, rule: str) -> bool:
    """Tells whether a row has the value of a rule FIELD=VALUE."""
    name, _, value = rule.partition("=")
    return str(row.fields.get(name)) == value


def held_out_prompts(rows: Iterable[Row], config: BuildConfig) -> set[str]:
    """Returns the prompts, as `prompt_key` tells them apart, of the rows that --hold-out names.

    Raises:
        InputError: A rule names no row.
    """
    prompts, met = set(), set()
    for row in rows:
        if rules := {rule for rule in config.hold_out if meets(row, rule)}:
            met |= rules
            prompts.add(prompt_key(row.prompt or row.response))
    if missing := [rule for rule in config.hold_out if rule not in met]:
        raise InputError(f"{config.input}: --hold-out: no record has {missing[0]}")
    return prompts


def select(
    rows: Iterable[Row],
    config: BuildConfig,
    seen: DuplicateIndex,
    rejects: Rejects,
    held_out: Collection[str] = (),
) -> Iterator[tuple[Row, str]]:
    """Yields the rows to annotate, each with its split; `rejects` takes the others.

    Args:
        held_out: The prompts of `held_out_prompts`; with --hold-out, no other row is for test.

    Raises:
        InputError: Two rows share an id.
    """
    for row in rows:
        seen.check_id(row, config.id_column)
        # without prompts, each response is on its own
        split = split_of(row.prompt or row.response, config)
        if config.hold_out:
            is_held_out = any(meets(row, rule) for rule in config.hold_out)
            split = "test" if is_held_out else split.replace("test", "train")
        if row.refused:
            rejects.add(row.refused[0], row, row.refused[1])
        elif len(row.response) > MAX_CHARACTERS:
            rejects.add("too long to parse", row, f"{len(row.response)} characters")
        elif split != "test" and held_out and prompt_key(row.prompt or row.response) in held_out:
            rejects.add("prompt of a row that is held out", row)
        elif split != "train" and config.eval_only and not meets(row, config.eval_only):
            rejects.add("not for evaluation (--eval-only)", row)
        elif found := seen.duplicate_of(row):
            rejects.add(found[0], row, f"of {found[1]}")
        else:
            yield row, split


def check_classes(
    config: BuildConfig, counts: Mapping[str, int], rejects: Rejects, when: str = ""
) -> None:
    """Raises InputError where a split has no harmful or no benign record.

    Args:
        counts: Records by "split label".
        when: Ends the sentence on what is missing.
    """
    for split in SPLITS:
        for label, word in ((1, "harmful"), (0, "benign")):
            if not counts.get(f"{split} {label}"):
                left_out = f"; left out: {rejects}" if rejects.counts else ""
                raise InputError(
                    f"{config.input}: split '{split}' came out without {word} rows{when}; more"
                    f" rows, another --seed or larger shares are needed{left_out}"
                )

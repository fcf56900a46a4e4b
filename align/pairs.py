"""Preference pairs: two answers to one conversation, one of which is better."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from align.encoding import single_turn
from data.fineharm import find_split
from data.json_rows import read_rows
from evaluation.runs import Read
from utils.files import InputError, sha256_file
from utils.validation import one_line

Text = Annotated[str, Field(min_length=1)]
Split = Literal["train", "valid", "test"]
VALID_SHARE = 0.1  # of the training prompts of files that have no validation


class Turn(Read):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Answer(Turn):
    role: Literal["assistant"]


class Pair(Read):
    """Two answers to one conversation, in TRL's conversational form.

    Attributes:
        id: Its name; within a file each has its own.
        prompt: The conversation; the last turn is the user's.
        chosen: The better answer, one turn.
        rejected: The worse one.
        split: Where it belongs.
        source: Where it comes from.
    """

    id: str
    prompt: Annotated[list[Turn], Field(min_length=1)]
    chosen: Annotated[list[Answer], Field(min_length=1, max_length=1)]
    rejected: Annotated[list[Answer], Field(min_length=1, max_length=1)]
    split: Split
    source: str = ""

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> "Pair":
        if self.prompt[-1].role != "user":
            raise ValueError("the last turn of 'prompt' is not the user's")
        return self

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it."""
        return [turn.model_dump() for turn in self.prompt]

    @property
    def question(self) -> str:
        """The user's last message: what a monitor reads as the prompt."""
        return self.prompt[-1].content

    @property
    def answers(self) -> tuple[str, str]:
        """The chosen answer and the rejected one."""
        return self.chosen[0].content, self.rejected[0].content


class SafePair(Read):
    """A row of PKU-SafeRLHF; its other fields are left alone."""

    prompt: Text
    response_0: Text
    response_1: Text
    safer_response_id: Literal[0, 1]


def _converse(row: SafePair, split: str, identity: str) -> Pair:
    """Makes a pair of a row of PKU-SafeRLHF; the safer answer is the better one."""
    answers = row.response_0, row.response_1
    turns = [
        [{"role": "assistant", "content": answers[place]}]
        for place in (row.safer_response_id, 1 - row.safer_response_id)
    ]
    digest = hashlib.sha256(row.prompt.encode()).digest()
    if split == "train" and digest[0] < 256 * VALID_SHARE:
        split = "valid"
    told = {"id": identity, "split": split, "prompt": single_turn(row.prompt)}
    return Pair.model_validate({**told, "chosen": turns[0], "rejected": turns[1]})


def files_of(path: Path) -> list[Path]:
    """Returns the files of pairs: one with a field `split`, or a folder's train and test.

    Raises:
        InputError: There is no such file.
    """
    return [find_split(path, split) for split in ("train", "test")] if path.is_dir() else [path]


def read_pairs(path: Path, *needed: str) -> dict[str, list[Pair]]:
    """Reads pairs by split.

    A file holds pairs in TRL's conversational form with a field `split`. Of a folder, train and
    test are read: rows of PKU-SafeRLHF, of whose training prompts a tenth is for validation.

    Raises:
        InputError: A file cannot be read, a field is missing or of another type, an id stands
            twice, both answers are the same, or a split that is needed is missing.
    """
    splits: dict[str, list[Pair]] = {}
    seen: set[str] = set()
    for file in files_of(path):
        for number, (where, row) in enumerate(read_rows(file)):
            with one_line(where):
                if path.is_dir():
                    split = "test" if file.stem.startswith("test") else "train"
                    safe = SafePair.model_validate(row)
                    pair = _converse(safe, split, f"{split}-{number}")
                else:
                    pair = Pair.model_validate(row)
            if pair.id in seen:
                raise InputError(f"{where}: field 'id': '{pair.id}' stands twice")
            if pair.answers[0] == pair.answers[1]:
                raise InputError(f"{where}: field 'rejected': is the chosen answer")
            seen.add(pair.id)
            splits.setdefault(pair.split, []).append(pair)
    for name in needed:
        if name not in splits:
            raise InputError(f"{path}: split '{name}' is missing")
    return splits


def pairs_input(path: str) -> dict[str, Any]:
    """Returns what a record says of pairs."""
    return {file.name: sha256_file(file) for file in files_of(Path(path))}

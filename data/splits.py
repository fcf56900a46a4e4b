"""Reading processed splits, and refusing data of another tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerFast

from data.alignment import EncodedRecord
from data.meta import read_meta
from data.tokenization import load_tokenizer, tokenizer_fingerprint
from utils.files import InputError


@dataclass
class ProcessedData:
    """A folder made by scripts/run-data.sh.

    Attributes:
        folder: Where it lies.
        meta: Its meta.json.
        splits: train, valid and test with the columns id, input_ids, token_labels,
            response_start and response_label.
    """

    folder: Path
    meta: dict[str, Any]
    splits: datasets.DatasetDict


def load_processed(folder: Path, tokenizer: PreTrainedTokenizerFast | None) -> ProcessedData:
    """Opens a processed data folder.

    Args:
        folder: The output folder of scripts/run-data.sh.
        tokenizer: The model's, with which the data must have been prepared; None takes the
            folder's own.

    Raises:
        InputError: The folder holds no data, or data of another tokenizer.
    """
    folder = Path(folder)
    meta = read_meta(folder)
    if tokenizer is None:
        tokenizer = load_tokenizer(folder / "tokenizer")
    if meta["tokenizer"] != tokenizer_fingerprint(tokenizer):
        raise InputError(
            f"{folder}/meta.json: field 'tokenizer': the data was prepared with another tokenizer"
            " than the model's, or before records were read as text alone; prepare it again:"
            " scripts/run-data.sh with the model's folder"
        )
    try:
        splits = datasets.load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: cannot be read as processed splits: {error}") from error
    if not isinstance(splits, datasets.DatasetDict):
        raise InputError(f"{folder}: holds one table, not the splits of scripts/run-data.sh")
    return ProcessedData(folder, meta, splits.with_format("numpy"))


@dataclass
class Examples:
    """One split in memory, ragged columns as lists of arrays. N examples.

    Attributes:
        ids: [N] str.
        input_ids: [N] int32 arrays [L].
        token_labels: [N] int8 arrays [L].
        response_start: int [N], index of the first response token.
        response_label: int [N], 0/1.
        prompt_group: int [N]; responses to one prompt share a number, they are not independent.

    Example:
        The record of `data.alignment.encode_records`' example, alone in its split:

        >>> examples[0]["token_labels"]
        array([-100, -100, -100,    0,    0,    0,    1,    1,    0,    0,    0], dtype=int8)
        >>> examples.lengths, examples.response_lengths
        (array([11]), array([8]))
    """

    ids: list[str]
    input_ids: list[np.ndarray]
    token_labels: list[np.ndarray]
    response_start: np.ndarray
    response_label: np.ndarray
    prompt_group: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input_ids": self.input_ids[index],
            "token_labels": self.token_labels[index],
            "response_start": self.response_start[index],
            "response_label": self.response_label[index],
        }

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int [N]."""
        return np.array([len(ids) for ids in self.input_ids])

    @property
    def response_lengths(self) -> np.ndarray:
        """Response tokens of each sequence, int [N]."""
        return self.lengths - self.response_start

    @property
    def response_token_labels(self) -> list[np.ndarray]:
        """Labels of the response tokens alone, [N] int8 arrays."""
        return [
            labels[start:]
            for labels, start in zip(self.token_labels, self.response_start, strict=True)
        ]


def load_examples(data: ProcessedData, split: str) -> Examples:
    """Reads one split into memory.

    Raises:
        InputError: The folder lacks the split or one of its columns.
    """
    if split not in data.splits:
        raise InputError(f"{data.folder}: lacks split '{split}'; run scripts/run-data.sh again")
    table = data.splits[split]
    missing = {"id", "prompt_key", "input_ids", "response_start"} - set(table.column_names)
    if missing:
        raise InputError(
            f"{data.folder}: split '{split}' lacks column '{min(missing)}'; run scripts/run-data.sh"
            " again"
        )
    return Examples(
        ids=[str(value) for value in table["id"]],
        input_ids=list(table["input_ids"]),
        token_labels=list(table["token_labels"]),
        response_start=np.asarray(table["response_start"]),
        response_label=np.asarray(table["response_label"]).astype(int),
        prompt_group=np.unique(list(table["prompt_key"]), return_inverse=True)[1],
    )


def to_examples(encoded: Sequence[EncodedRecord]) -> Examples:
    """Puts encoded records into memory as `load_examples` would read them."""
    return Examples(
        ids=[example.id for example in encoded],
        input_ids=[example.input_ids for example in encoded],
        token_labels=[example.token_labels for example in encoded],
        response_start=np.array([example.response_start for example in encoded]),
        response_label=np.array([example.response_label for example in encoded]),
        prompt_group=np.arange(len(encoded)),
    )

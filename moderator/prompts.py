"""Labelled prompts: one JSON object a line, or a list."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from data.json_rows import read_rows
from evaluation.runs import Read
from utils.files import InputError
from utils.validation import one_line

BENIGN = "benign"


class Prompt(Read):
    """One prompt.

    Attributes:
        id: Its name; within a split each has its own.
        prompt: What was asked.
        label: 1 = a harmful request, 0 = benign.
        split: Where it belongs.
        category: Area of a harmful prompt, if its source names one.
        source: Where it comes from.
    """

    id: str
    prompt: str
    label: Literal[0, 1]
    split: Literal["train", "valid", "test"]
    category: str | None = None
    source: str = ""


EXAMPLE = TypeAdapter(str)


def read_prompts(path: Path, *needed: str) -> dict[str, list[Prompt]]:
    """Reads labelled prompts by split; fields that are not `Prompt`'s are left alone.

    Raises:
        InputError: The file cannot be read, a field is missing or of another type, an id stands
            twice, a prompt is empty, a benign prompt has a category, or a split that is needed is
            missing.
    """
    splits: dict[str, list[Prompt]] = {}
    seen: set[str] = set()
    for where, row in read_rows(path):
        with one_line(where):
            prompt = Prompt.model_validate(row)
        if not prompt.prompt.strip():
            raise InputError(f"{where}: field 'prompt': is empty")
        if prompt.id in seen:
            raise InputError(f"{where}: field 'id': '{prompt.id}' stands twice")
        if prompt.category and not prompt.label:
            raise InputError(f"{where}: field 'category': of a benign prompt")
        seen.add(prompt.id)
        splits.setdefault(prompt.split, []).append(prompt)
    for name in needed:
        if name not in splits:
            raise InputError(f"{path}: split '{name}' is missing")
    return splits


def read_examples(path: Path) -> list[str]:
    """Reads the prompts alone of a file whose other fields do not count.

    Raises:
        InputError: The file cannot be read, or a prompt is missing, empty or no text.
    """
    prompts = []
    for where, row in read_rows(path):
        with one_line(where, "prompt"):
            prompts.append(EXAMPLE.validate_python(row.get("prompt"), strict=True))
        if not prompts[-1].strip():
            raise InputError(f"{where}: field 'prompt': is empty")
    return prompts


def labels_of(prompts: Sequence[Prompt]) -> np.ndarray:
    """Returns int [N], 1 = harmful."""
    return np.array([prompt.label for prompt in prompts], dtype=int)

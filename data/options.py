"""Options of data preparation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.fineharm import SPLITS, find_split
from utils.files import InputError, sha256_file

Join = Literal["newline", "original"]
Split = Literal[SPLITS]


@dataclass
class DataConfig:
    """Options of data preparation."""

    output_dir: str
    """Folder to write the processed splits into."""
    tokenizer_path: str
    """Folder with the model's tokenizer.json."""
    input_dir: str = "FineHarm"
    """Folder with the train/valid/test files."""
    join: Join = "newline"
    """newline: each sentence encoded by itself, a newline after it (the paper's numbers).
    original: the untouched response (what a live stream looks like)."""
    max_length: int = 4096
    """Longest sequence in tokens, prompt included."""
    word_rule: Literal["given", "all"] = "given"
    """given: words as the records label them. all: each word as its sentence, an ablation."""
    splits: list[Split] = field(default_factory=lambda: [*SPLITS])
    """Splits to prepare. Of all three each needs both classes; fewer, of which none needs both, do
    for a test with --settings."""
    num_workers: int = 0
    """Processes; 0 takes every core where the data is worth it."""
    overwrite: bool = False
    """Replace the output folder if it is there already."""

    def __post_init__(self) -> None:
        if self.max_length < 16:
            raise InputError(f"--max-length: {self.max_length} is below 16 tokens")
        self.splits = [split for split in SPLITS if split in self.splits]
        if not self.splits:
            raise InputError("--splits: names none")
        if self.num_workers < 0:
            raise InputError(f"--num-workers: {self.num_workers} is negative")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read: the splits and the tokenizer."""
        files = [find_split(Path(self.input_dir), split) for split in self.splits]
        files.append(Path(self.tokenizer_path) / "tokenizer.json")
        return {"inputs": {path.name: sha256_file(path) for path in files}}

"""Options of data preparation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.fineharm import SPLITS, find_split
from utils.files import InputError, sha256_file
from utils.options import refuse_below_one

Join = Literal["newline", "original"]
Split = Literal[SPLITS]
Reading = Literal["plain", "folded"]
Hiding = Literal["zero-width", "homoglyphs", "marks", "spacing", "leetspeak"]


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
    more_train: list[str] = field(default_factory=list)
    """Further folders like --input-dir, whose train files are added to the training split."""
    more_train_times: int = 1
    """How often each of their records stands there: weighs a small corpus beside a large one."""
    train_share: float = 1.0
    """Share of the training records to use, for learning curves: drawn by --seed, a smaller one
    within a larger one."""
    reading: Reading = "plain"
    """plain: text as it is. folded: invisible characters dropped, letters in disguise and digits
    for letters made plain, words that are spelled out joined; a monitor then reads so, too."""
    hide: list[Hiding] = field(default_factory=list)
    """Spell the words of responses so that they hide, each response in one of these ways drawn at
    random: to test that, or to train against it."""
    hide_splits: list[Split] = field(default_factory=lambda: [*SPLITS])
    """Splits whose responses hide, with --hide."""
    hide_records: float = 1.0
    """Share of their responses that do."""
    hide_words: float = 1.0
    """Share of the words of such a response."""
    seed: int = 42
    """Of --hide and --train-share."""
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
        if self.more_train and "train" not in self.splits:
            raise InputError("--more-train: --splits lacks train")
        refuse_below_one(self, "more_train_times")
        for name in ("hide_records", "hide_words", "train_share"):
            if not 0 < getattr(self, name) <= 1:
                option = name.replace("_", "-")
                raise InputError(f"--{option}: {getattr(self, name)} is not above 0 and at most 1")
        if self.num_workers < 0:
            raise InputError(f"--num-workers: {self.num_workers} is negative")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read: the splits and the tokenizer."""
        files = [find_split(Path(self.input_dir), split) for split in self.splits]
        files.append(Path(self.tokenizer_path) / "tokenizer.json")
        inputs = {path.name: sha256_file(path) for path in files}
        more = [find_split(Path(folder), "train") for folder in self.more_train]
        return {"inputs": inputs | {str(path): sha256_file(path) for path in more}}

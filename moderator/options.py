"""Options of the moderator's commands."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from monitor.settings import FILE
from utils.files import InputError, sha256_file
from utils.options import Precision, refuse_below_one
from utils.run_record import model_summary

Prototype = Literal["gda", "nearest-mean"]
Combine = Literal["l1", "vote", "last", "best"]


@dataclass(kw_only=True)
class ReaderConfig:
    """Options that say whose states of the prompts are read."""

    base_model_path: str = ""
    """Language model whose states are read, in its chat template."""
    monitor_path: str = ""
    """Instead: a trained SCM with its monitor.json; the states are those of its own reading."""
    state_cache: str = ""
    """Folder to keep the states in, shared by all commands; default none is kept."""
    precision: Precision = "fp32"
    """fp32: states do not depend on the batch. auto, bf16: faster. Of --base-model-path."""

    def __post_init__(self) -> None:
        if bool(self.base_model_path) == bool(self.monitor_path):
            raise InputError("--base-model-path, --monitor-path: one of the two is needed")
        if self.monitor_path and self.precision != "fp32":
            raise InputError("--precision: --monitor-path reads in fp32, as the monitor does")

    def model_inputs(self) -> dict[str, Any]:
        """Returns hashes of the model that reads."""
        return {"reader": model_summary(Path(self.base_model_path or self.monitor_path))}


def prompts_input(path: str) -> dict[str, str]:
    """Returns what a record says of a file of prompts, as it does of a data folder."""
    return {"folder": path, "meta_sha256": sha256_file(Path(path))}


@dataclass(kw_only=True)
class FitConfig(ReaderConfig):
    """Options of the training. Nothing is trained by gradients."""

    prompts: str
    """File of labelled prompts: id, prompt, label (1 = harmful), split; source and category."""
    output_dir: str
    """Folder of the moderator."""
    classes: Literal["harmful", "categories"] = "harmful"
    """harmful: two classes. categories: a class for each category of harmful prompts."""
    prototype: Prototype = "gda"
    """gda: Gaussians of one covariance, the paper's. nearest-mean: distance from the mean."""
    combine: Combine = "l1"
    """l1: logistic regression over the layers, the paper's. vote: of the layers. last: the last
    layer alone. best: the one that ranks validation's prompts best."""
    c: float = 1.0
    """Of l1: inverse strength of the penalty."""
    per_class: int = 0
    """Draw so many training prompts of each class; 0 takes all."""
    seed: int = 42
    """Of the draw."""
    target_false_alarm: float = 0.0
    """Calibrate the threshold on benign validation prompts to let through at most this share of
    false alarms; 0: best macro F1 on validation."""
    keep_states: bool = False
    """Keep the prompts' states with the moderator, so that classes can be added and removed."""
    overwrite: bool = False
    """Replace the output folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.c < math.inf:
            raise InputError(f"--c: {self.c} is no number above 0")
        if not 0 <= self.target_false_alarm < 1:
            raise InputError(f"--target-false-alarm: {self.target_false_alarm} is not in 0…1")
        if self.per_class:
            refuse_below_one(self, "per_class")
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is below 0")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {"data": prompts_input(self.prompts), **self.model_inputs()}


@dataclass(kw_only=True)
class ChangeConfig:
    """Options that adding and removing a class share."""

    moderator_path: str
    """Moderator that was trained with --keep-states."""
    output_dir: str
    """Folder of the changed one."""
    name: str
    """Name of the class."""
    overwrite: bool = False
    """Replace the output folder."""

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {"moderator": moderator_hashes(self.moderator_path)}


@dataclass(kw_only=True)
class AddConfig(ChangeConfig, ReaderConfig):
    """Options of adding a class of harmful prompts, from a few examples."""

    examples: str
    """File of its examples; only the field prompt is read."""

    def inputs(self) -> dict[str, Any]:
        return super().inputs() | {"data": prompts_input(self.examples), **self.model_inputs()}


@dataclass(kw_only=True)
class RemoveConfig(ChangeConfig):
    """Options of removing a class: its prompts count no more."""


@dataclass(kw_only=True)
class JudgedConfig:
    """Options that name a test's responses, and the moderator of their prompts.

    The moderator is one of the monitor's own reading.
    """

    metrics_dir: str
    """Folder that a test of the monitor's partial detection wrote."""
    input_dir: str
    """Folder of the records that the test's data was made of: their prompts."""
    moderator_path: str
    """Moderator that was trained with --monitor-path."""
    monitor_path: str
    """The monitor: output folder of run-scm.sh or get-scm.sh."""
    settings: str = ""
    """Its thresholds; default the file monitor.json in its folder."""
    state_cache: str = ""
    """Folder to keep the states in, shared by all commands; default none is kept."""

    @property
    def settings_file(self) -> Path:
        """Where the thresholds are."""
        return Path(self.settings or Path(self.monitor_path) / FILE)

    @property
    def reader(self) -> ReaderConfig:
        """Whose states of the prompts are read."""
        return ReaderConfig(monitor_path=self.monitor_path, state_cache=self.state_cache)


@dataclass(kw_only=True)
class PriorConfig(JudgedConfig):
    """Options of choosing a stricter threshold for responses to flagged prompts."""

    output_file: str
    """Settings file to write: those that were read, and the threshold."""
    target_false_alarm: float = 0.0
    """Share of benign responses to flagged prompts that may be stopped; 0: best macro F1 of all
    validation responses."""
    overwrite: bool = False
    """Replace the file."""

    def __post_init__(self) -> None:
        if not 0 <= self.target_false_alarm < 1:
            raise InputError(f"--target-false-alarm: {self.target_false_alarm} is not in 0…1")


def moderator_hashes(folder: str) -> dict[str, str]:
    """Returns what a record says of a moderator."""
    files = sorted(Path(folder).glob("moderator.*"))
    return {path.name: sha256_file(path) for path in files}

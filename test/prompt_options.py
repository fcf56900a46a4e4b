"""Options of the tests of prompts."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.options import BootstrapConfig
from moderator.options import JudgedConfig, ReaderConfig, moderator_hashes, prompts_input
from test.options import BaselineMethod, ReportConfig
from utils.files import InputError, sha256_file
from utils.options import refuse_below_one


@dataclass(kw_only=True)
class PromptConfig(ReportConfig):
    """Options that the tests of prompts share."""

    prompts: str
    """File of labelled prompts: id, prompt, label (1 = harmful), split; source and category."""
    output_dir: str
    """Folder for metrics and predictions."""

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {"data": prompts_input(self.prompts)}


@dataclass(kw_only=True)
class ModeratorTestConfig(PromptConfig, ReaderConfig):
    """Options of the test."""

    moderator_path: str
    """Output folder of scripts/run-mlpm.sh."""
    theta: float | None = None
    """Threshold; default the moderator's own, 0.5 is the paper's."""

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        ReaderConfig.__post_init__(self)
        if self.theta is not None and not 0 < self.theta <= 1:
            raise InputError(f"--theta: {self.theta} is not above 0 and at most 1")

    def inputs(self) -> dict[str, Any]:
        hashes = moderator_hashes(self.moderator_path)
        return super().inputs() | {"moderator": hashes, **self.model_inputs()}


@dataclass(kw_only=True)
class PromptBaselineConfig(PromptConfig):
    """Options of the baselines on prompts."""

    method: BaselineMethod = "tfidf"
    """tfidf: TF-IDF of words and word pairs, logistic regression. length: the prompt's length in
    words alone."""


@dataclass(kw_only=True)
class PromptCurvesConfig(BootstrapConfig, ReaderConfig):
    """Options of the curves. All moderators are fitted anew, with Gaussians and L1."""

    prompts: str
    """File of labelled prompts: id, prompt, label (1 = harmful), split; source and category."""
    output_dir: str
    """Folder for curves.json, tables and picture."""
    c: float = 1.0
    """Of l1 wherever it is not what changes."""
    strengths: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1, 3, 10])
    """C of l1 to try."""
    counts: list[int] = field(default_factory=lambda: [10, 30, 100, 300])
    """Training prompts of each class to try; all of them are tried as well."""
    new_class: str = "misinformation"
    """A category that training lacks: examples of it come from valid. Left out where the prompts
    have no such category."""
    new_counts: list[int] = field(default_factory=lambda: [5, 10, 20])
    """Examples of the new class to try; none and all of them are tried as well."""
    draws: int = 5
    """Times that prompts or examples are drawn, with the seeds from --seed on."""

    def __post_init__(self) -> None:
        BootstrapConfig.__post_init__(self)
        ReaderConfig.__post_init__(self)
        refuse_below_one(self, "draws")
        for name in ("strengths", "counts", "new_counts"):
            values = sorted(getattr(self, name))
            flag = f"--{name.replace('_', '-')}"
            if len(set(values)) < len(values):
                raise InputError(f"{flag}: a number stands there twice")
            least = 2 if name == "counts" else 0
            for value in values:
                if not (least <= value < math.inf and value > 0):
                    raise InputError(
                        f"{flag}: {value} is no number {'from 2' if least else 'above 0'}"
                    )
            setattr(self, name, values)
        if not 0 < self.c < math.inf:
            raise InputError(f"--c: {self.c} is no number above 0")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {"data": prompts_input(self.prompts), **self.model_inputs()}


@dataclass(kw_only=True)
class WithMonitorConfig(JudgedConfig, BootstrapConfig):
    """Options of measuring what the moderator is worth beside the monitor."""

    output_dir: str
    """Folder for the table."""
    harmless: str = ""
    """Regular expression that matches the ids, whole, of responses to harmless prompts; false
    refusals are told for them and for the other benign responses apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.harmless)
        except re.error as error:
            raise InputError(f"--harmless: '{self.harmless}': {error}") from None

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {
            "moderator": moderator_hashes(self.moderator_path),
            "settings_sha256": sha256_file(self.settings_file),
            "tests": {self.metrics_dir: sha256_file(Path(self.metrics_dir) / "predictions.npz")},
            **self.reader.model_inputs(),
        }

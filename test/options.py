"""Options of the tests."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.meta import data_summary, read_meta
from evaluation.options import BootstrapConfig, Strictness, Style
from model.options import Function, ScoreWith
from monitor.rules import DelayK
from monitor.settings import FILE, read_settings
from utils.files import InputError, sha256_file
from utils.options import TOKEN_BUDGET, Precision, refuse_below_one
from utils.run_record import model_summary


@dataclass(kw_only=True)
class ReportConfig(BootstrapConfig):
    """Options that all tests share, of responses and of prompts."""

    name: str = ""
    """Name of the row in tables; default its own."""


@dataclass
class EvaluationConfig(ReportConfig):
    """Options that the tests of all rows share."""

    data_dir: str
    """Processed data, made by scripts/run-data.sh."""
    output_dir: str
    """Folder for metrics, predictions and the figure."""
    target_false_alarm: float = 0.0
    """Also report delay-k detection whose θ is calibrated on benign validation responses to let
    through at most this share of false alarms; 0 for none."""
    target_k: int = 4
    """k of --target-false-alarm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(self, "target_k")
        if not 0 <= self.target_false_alarm < 1:
            raise InputError(f"--target-false-alarm: {self.target_false_alarm} is not in 0…1")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {"data": data_summary(self.data_dir)}

    def given_thresholds(self) -> tuple[float, int] | None:
        """Returns θ and k where they are not to be chosen anew."""
        return None

    def refuse_target(self, reason: str = "full detection stops no stream") -> None:
        """Raises InputError where θ is to be calibrated for a share of false alarms."""
        if self.target_false_alarm or self.target_k != EvaluationConfig.target_k:
            raise InputError(f"--target-false-alarm, --target-k: {reason}")


@dataclass(kw_only=True)
class ModelTestConfig(EvaluationConfig):
    """Options that the tests of neural models share."""

    model_path: str
    """The model's folder; of ours, the training's."""
    precision: Precision = "fp32"
    """fp32: scores do not depend on the batch. auto, bf16: faster."""
    token_budget: int = TOKEN_BUDGET
    """Padded tokens a batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(self, "token_budget")

    def inputs(self) -> dict[str, Any]:
        return super().inputs() | {"model": model_summary(Path(self.model_path))}


@dataclass(kw_only=True)
class CausalTestConfig(ModelTestConfig):
    """Options of the test."""

    row: Literal["scm", "qwen-full", "qwen-partial"]
    """Row of the paper's table. scm: token scorer, partial detection. qwen-full: the holistic
    scorer of a model trained for full detection, on complete responses. qwen-partial: the same
    at every response token."""
    score_with: ScoreWith = "token"
    """Of the row scm. token: the token scorer, as in the paper. holistic: the holistic scorer
    at every token, as in the released code."""
    settings: str = ""
    """Of the row scm: a monitor.json, or its folder, whose θ and k judge the test split; nothing is
    chosen anew, and the split test alone will do (run-data.sh --splits test)."""
    frozen_cache: str = ""
    """Of a checkpoint trained with --last-layers: folder to keep the frozen layers' output in,
    shared by the tests of all such checkpoints on the same text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row != "scm" and self.score_with != "token":
            raise InputError(f"--score-with: the row {self.row} has its holistic scorer alone")
        if self.row == "qwen-full":
            self.refuse_target()
        if self.settings:
            self.refuse_target("--settings holds the thresholds")

    def inputs(self) -> dict[str, Any]:
        inputs = super().inputs()
        if given := self.given_thresholds():
            sha256 = sha256_file(self._settings_file)
            inputs["settings"] = {"sha256": sha256, "theta": given[0], "k": given[1]}
        return inputs

    @property
    def _settings_file(self) -> Path:
        path = Path(self.settings)
        return path / FILE if path.is_dir() else path

    def given_thresholds(self) -> tuple[float, int] | None:
        if not self.settings:
            return None
        settings = read_settings(self._settings_file)
        rule = settings.policy.rule
        if not isinstance(rule, DelayK):
            raise InputError(
                f"{self._settings_file}: field 'rule': a test stops by {DelayK.name}, not by"
                f" {rule.name}"
            )
        if self.row != "scm" or settings.score_with != self.score_with:
            raise InputError(
                f"{self._settings_file}: field 'score_with': its thresholds are of the"
                f" {settings.score_with} scorer of the row scm"
            )
        if settings.reading != (reading := read_meta(Path(self.data_dir))["reading"]):
            raise InputError(
                f"{self._settings_file}: field 'reading': '{settings.reading}', but the data was"
                f" prepared with --reading {reading}"
            )
        return settings.policy.stop_threshold, rule.k


BaselineMethod = Literal["tfidf", "length"]


@dataclass
class BaselineConfig(EvaluationConfig):
    """Options of the baselines."""

    method: BaselineMethod = "tfidf"
    """tfidf: TF-IDF of words and word pairs, logistic regression. length: the response's length
    in tokens alone."""
    detection: Literal["full", "partial"] = "partial"
    """partial: full detection, and every prefix as well. full: that alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.detection == "full":
            self.refuse_target()


@dataclass
class RulesConfig(BootstrapConfig):
    """Options of the comparison."""

    metrics_dir: str
    """Folder that a test of partial detection wrote."""
    output_dir: str
    """Folder for the comparison."""
    targets: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.2])
    """Shares of false alarms to compare the rules at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for target in self.targets:
            if not 0 < target < 1:
                raise InputError(f"--targets: {target} is not above 0 and below 1")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        folder = Path(self.metrics_dir)
        predictions = sha256_file(folder / "predictions.npz")
        return {"data": {"folder": str(folder), "predictions_sha256": predictions}}


@dataclass(kw_only=True)
class SourcesConfig(BootstrapConfig):
    """Options of the comparison."""

    metrics_dirs: list[str]
    """Folders that tests of the same responses wrote; the others are compared with the first."""
    output_dir: str
    """Folder for the comparison."""
    source_pattern: str = r"(.+)-[^-]*"
    """Regular expression that matches an id whole; its first group is the source."""
    calibrate_on: int = 0
    """Also calibrate θ of partial detection on this many benign responses of each source that has
    twice as many; 0 for none."""
    target_false_alarm: float = 0.05
    """Share of false alarms that the calibration promises."""
    draws: int = 200
    """Times that other responses are drawn to calibrate on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(self, "draws")
        if self.calibrate_on < 0:
            raise InputError(f"--calibrate-on: {self.calibrate_on} is below 0")
        if not 0 < self.target_false_alarm < 1:
            raise InputError(
                f"--target-false-alarm: {self.target_false_alarm} is not above 0 and below 1"
            )
        try:
            groups = re.compile(self.source_pattern).groups
        except re.error as error:
            raise InputError(f"--source-pattern: '{self.source_pattern}': {error}") from None
        if not groups:
            raise InputError(f"--source-pattern: '{self.source_pattern}' has no group")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        paths = [Path(folder) / "predictions.npz" for folder in self.metrics_dirs]
        return {"tests": {str(path): sha256_file(path) for path in paths}}


@dataclass
class LiveConfig:
    """Options of the check."""

    metrics_dir: str
    """Output folder of scripts/run-scm.sh test."""
    model_path: str
    """The checkpoint it tested."""
    input_dir: str
    """FineHarm folder that its data was made from."""
    output: str = ""
    """JSON file to write; default none."""
    overwrite: bool = False
    """Replace that file."""
    streams: int = 32
    """Streams at the same time."""
    longest: int = 40
    """Characters of the longest piece."""
    limit: int = 0
    """Responses to check; 0 for all."""
    seed: int = 42
    """Of the pieces."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "streams", "longest")


@dataclass(kw_only=True)
class ClassifierConfig(ModelTestConfig):
    """A text classifier of Hugging Face: full detection."""

    text: Literal["response", "pair"] = "response"
    """response: the response alone. pair: prompt and response as a pair of texts."""
    harmful_label: str = ""
    """Name of the harmful class where it cannot be told."""
    benign_label: str = ""
    """Name of the benign class where all others are harmful: harm is what it lacks to 1."""
    function: Function = "auto"
    """What makes probabilities of logits. softmax: of classes that exclude each other. sigmoid: of
    classes of which several can be true. auto: as config.json says, softmax where it does not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_target()
        if self.harmful_label and self.benign_label:
            raise InputError("--harmful-label and --benign-label exclude each other")


@dataclass(kw_only=True)
class GenerativeConfig(ModelTestConfig):
    """A language model that answers with a verdict: full detection."""

    style: Style
    """How the guard answers."""
    strictness: Strictness = "strict"
    """strict: controversial responses count as harmful. loose: as benign."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_target()
        if self.style == "llama-guard" and self.strictness != "strict":
            raise InputError("--strictness: llama-guard calls nothing controversial")


@dataclass(kw_only=True)
class StreamConfig(ModelTestConfig):
    """Qwen3Guard-Stream, a verdict at every token: full and partial detection."""

    strictness: Strictness = "strict"
    """strict: controversial responses count as harmful. loose: as benign."""
    trust_remote_code: bool = False
    """Run the Python code that lies in the model folder; without it nothing loads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trust_remote_code:
            raise InputError(
                "--trust-remote-code: the row stream runs Python code that comes with the weights;"
                f" read what is in {self.model_path}, then pass this option"
            )


GUARDS = {"classifier": ClassifierConfig, "generative": GenerativeConfig, "stream": StreamConfig}


@dataclass(kw_only=True)
class ModernBertTestConfig(ModelTestConfig):
    """Options of the test."""

    row: Literal["modernbert-full", "modernbert-partial"]
    """Row of the paper's table."""
    stride: int = 1
    """Partial: score every N-th prefix only, a coarse sweep; 1 for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below_one(self, "stride")
        if self.row == "modernbert-full":
            if self.stride > 1:
                raise InputError("--stride: full detection scores no prefixes")
            self.refuse_target()

"""Options of the benchmarks."""

from dataclasses import dataclass, field
from typing import Literal

from utils.files import InputError
from utils.options import Precision, refuse_below_one

WARM_UP = 3  # steps of a benchmark that are not counted


@dataclass(kw_only=True)
class BenchmarkConfig:
    """Options of every benchmark."""

    output: str
    """JSON file to write."""
    overwrite: bool = False
    """Replace that file."""


@dataclass(kw_only=True)
class ModelBenchmarkConfig(BenchmarkConfig):
    """Options of the benchmarks of models."""

    base_model_path: str
    """Qwen2-family model folder."""
    repeats: int
    """Repetitions; the median counts."""
    seed: int = 42
    """Of the heads, draws and made-up input."""


@dataclass(kw_only=True)
class TrainingBenchmarkConfig(ModelBenchmarkConfig):
    """Data preparation, training and scoring against padding everything."""

    input_dir: str = "FineHarm/sample"
    """FineHarm folder."""
    output: str = "benchmark.json"
    records: int = 2000
    """Records of data preparation."""
    samples: int = 4
    """Responses of training and scoring."""
    padded_length: int = 4096
    """Tokens the slow way pads to."""
    repeats: int = 3
    precision: Precision = "fp32"
    """fp32 or bf16, for both ways."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "records", "samples", "padded_length", "repeats")


@dataclass(kw_only=True)
class DetectionBenchmarkConfig(ModelBenchmarkConfig):
    """Scoring, prefixes and thresholds."""

    encoder_path: str
    """ModernBERT folder."""
    input_dir: str = "FineHarm/sample"
    """FineHarm folder."""
    output: str = "detection.json"
    samples: int = 32
    """Responses to score."""
    max_length: int = 4096
    """Tokens of a sequence."""
    repeats: int = 5

    def __post_init__(self) -> None:
        refuse_below_one(self, "samples", "max_length", "repeats")


@dataclass(kw_only=True)
class MonitorBenchmarkConfig(ModelBenchmarkConfig):
    """A further token, many streams, generation beside the monitor."""

    output: str = "monitor-speed.json"
    positions: list[int] = field(default_factory=lambda: [128, 512, 2048, 8192])
    """Tokens in the stream."""
    streams: list[int] = field(default_factory=lambda: [1, 8, 32, 128])
    """Streams at the same time."""
    new_tokens: int = 64
    """Tokens to generate."""
    repeats: int = 15
    reread: int = 3
    """Repetitions of reading a prefix again."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "repeats", "reread", "new_tokens")
        for name, least in (("positions", self.repeats + WARM_UP + 1), ("streams", 1)):
            if min(getattr(self, name)) < least:
                raise InputError(f"--{name}: {min(getattr(self, name))} is below {least}")


@dataclass(kw_only=True)
class PromptBenchmarkConfig(ModelBenchmarkConfig):
    """What a verdict on a prompt adds to reading it; fits on more and more prompts."""

    output: str = "prompt-speed.json"
    tokens: int = 500
    """Tokens of the prompt."""
    repeats: int = 15
    samples: list[int] = field(default_factory=lambda: [1000, 4000, 16000])
    """Prompts of the fits, an eighth of them for validation; their states are made up."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "tokens", "repeats")
        if not self.samples or min(self.samples) < 32:
            raise InputError(f"--samples: {min(self.samples, default=0)} is below 32")


@dataclass(kw_only=True)
class AnnotationBenchmarkConfig(BenchmarkConfig):
    """Building FineHarm records of a growing corpus."""

    input: str
    """Judged responses, as for run-annotate.sh."""
    times: list[float] = field(default_factory=lambda: [1.0, 4.0, 16.0])
    """Sizes to measure, in multiples of the input."""
    annotator: Literal["response", "mil"] = "response"
    """Annotator that builds them."""
    output: str = "annotation.json"

    def __post_init__(self) -> None:
        for times in self.times:
            if times <= 0 or not (float(times).is_integer() or (1 / times).is_integer()):
                raise InputError(f"--times: {times} is neither whole nor one part of a whole")


@dataclass(kw_only=True)
class GatewayBenchmarkConfig(BenchmarkConfig):
    """What the gateway adds to an upstream, and many streams for long."""

    model_path: str
    """The monitor."""
    settings: str = ""
    """Its thresholds; default the file monitor.json in its folder. None may be reached."""
    output: str = "gateway.json"
    rate: float = 20.0
    """Tokens a second of the upstream."""
    tokens: int = 200
    """Tokens of an answer."""
    streams: int = 200
    """Streams at the same time."""
    seconds: float = 60.0
    """How long; 0 leaves it out."""
    repeats: int = 5

    def __post_init__(self) -> None:
        refuse_below_one(self, "tokens", "streams", "repeats")
        for name in ("rate", "seconds"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name}: {getattr(self, name)} is below 0")


@dataclass(kw_only=True)
class LiteLLMConfig(BenchmarkConfig):
    """LiteLLM's proxy in front of a stub, guarded by the gateway's Generic Guardrail API."""

    model_path: str
    """The monitor."""
    litellm: str
    """LiteLLM's command, in an environment of its own."""
    output: str = "litellm.json"


@dataclass(kw_only=True)
class ReplicasBenchmarkConfig(BenchmarkConfig):
    """Replicas that die, come and go amid sessions and streams."""

    model_path: str
    """The monitor."""
    output: str = "replicas.json"
    port: int = 8899
    """Port of the replicas."""
    pause: float = 15.0
    """Seconds between what happens to them."""

"""Options of the benchmarks."""

from dataclasses import dataclass, field

from utils.files import InputError
from utils.options import Precision, refuse_below_one

WARM_UP = 3  # steps of a benchmark that are not counted


@dataclass
class TrainingBenchmarkConfig:
    """Options of the benchmark."""

    base_model_path: str
    """Qwen2-family model folder."""
    input_dir: str = "FineHarm/sample"
    """FineHarm folder."""
    output: str = "benchmark.json"
    """JSON file to write."""
    overwrite: bool = False
    """Replace that file."""
    records: int = 2000
    """Records of data preparation."""
    samples: int = 4
    """Responses of training and scoring."""
    padded_length: int = 4096
    """Tokens the slow way pads to."""
    repeats: int = 3
    """Repetitions; the median counts."""
    precision: Precision = "fp32"
    """fp32 or bf16, for both ways."""
    seed: int = 42
    """Of the heads."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "records", "samples", "padded_length", "repeats")


@dataclass
class DetectionBenchmarkConfig:
    """Options of the benchmark."""

    base_model_path: str
    """Qwen2-family model folder."""
    encoder_path: str
    """ModernBERT folder."""
    input_dir: str = "FineHarm/sample"
    """FineHarm folder."""
    output: str = "detection.json"
    """JSON file to write."""
    overwrite: bool = False
    """Replace that file."""
    samples: int = 32
    """Responses to score."""
    max_length: int = 4096
    """Tokens of a sequence."""
    repeats: int = 5
    """Repetitions; the median counts."""
    seed: int = 42
    """Of the draw, heads and made-up scores."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "samples", "max_length", "repeats")


@dataclass
class MonitorBenchmarkConfig:
    """Options of the benchmark."""

    base_model_path: str
    """Qwen2-family model folder."""
    output: str = "monitor-speed.json"
    """JSON file to write."""
    overwrite: bool = False
    """Replace that file."""
    positions: list[int] = field(default_factory=lambda: [128, 512, 2048, 8192])
    """Tokens in the stream."""
    streams: list[int] = field(default_factory=lambda: [1, 8, 32, 128])
    """Streams at the same time."""
    new_tokens: int = 64
    """Tokens to generate."""
    repeats: int = 15
    """Repetitions; the median counts."""
    reread: int = 3
    """Repetitions of reading a prefix again."""
    seed: int = 42
    """Of heads and made-up tokens."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "repeats", "reread", "new_tokens")
        least = {"positions": self.repeats + WARM_UP + 1, "streams": 1}
        for name, smallest in least.items():
            if min(getattr(self, name)) < smallest:
                raise InputError(f"--{name}: {min(getattr(self, name))} is below {smallest}")


@dataclass
class AnnotationBenchmarkConfig:
    """Options of the benchmark."""

    input: str
    """Judged responses, as for build_fineharm."""
    times: list[float] = field(default_factory=lambda: [1.0, 4.0, 16.0])
    """Sizes to measure, in multiples of the input."""
    annotator: str = "response"
    """Annotator: response or mil."""
    output: str = "annotation.json"
    """JSON file to write."""
    overwrite: bool = False
    """Replace that file."""

    def __post_init__(self) -> None:
        for times in self.times:
            if times <= 0 or not (float(times).is_integer() or (1 / times).is_integer()):
                raise InputError(f"--times: {times} is neither whole nor one part of a whole")
        if self.annotator not in ("response", "mil"):
            raise InputError(f"--annotator: '{self.annotator}' is neither response nor mil")

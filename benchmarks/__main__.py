"""The benchmarks: python -m benchmarks training|detection|monitor|annotation …"""

from benchmarks.options import (
    AnnotationBenchmarkConfig,
    DetectionBenchmarkConfig,
    MonitorBenchmarkConfig,
    TrainingBenchmarkConfig,
)
from utils.cli import Command, run_command

COMMANDS = {
    "training": Command(TrainingBenchmarkConfig, "benchmarks.training"),
    "detection": Command(DetectionBenchmarkConfig, "benchmarks.detection"),
    "monitor": Command(MonitorBenchmarkConfig, "benchmarks.monitor"),
    "annotation": Command(AnnotationBenchmarkConfig, "benchmarks.annotation"),
}

if __name__ == "__main__":
    run_command(COMMANDS)

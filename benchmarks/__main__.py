"""The benchmarks: python -m benchmarks training|detection|monitor|annotation …"""

from benchmarks import options
from utils.cli import Command, run_command

COMMANDS = {
    "training": Command(options.TrainingBenchmarkConfig, "benchmarks.training"),
    "detection": Command(options.DetectionBenchmarkConfig, "benchmarks.detection"),
    "monitor": Command(options.MonitorBenchmarkConfig, "benchmarks.monitor"),
    "annotation": Command(options.AnnotationBenchmarkConfig, "benchmarks.annotation"),
}

if __name__ == "__main__":
    run_command(COMMANDS)

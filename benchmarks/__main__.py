"""The benchmarks: python -m benchmarks training|detection|monitor|gateway|… …"""

from benchmarks import options
from utils.cli import Command, run_command

COMMANDS = {
    "training": Command(options.TrainingBenchmarkConfig, "benchmarks.training"),
    "detection": Command(options.DetectionBenchmarkConfig, "benchmarks.detection"),
    "monitor": Command(options.MonitorBenchmarkConfig, "benchmarks.monitor"),
    "prompts": Command(options.PromptBenchmarkConfig, "benchmarks.prompts"),
    "gateway": Command(options.GatewayBenchmarkConfig, "benchmarks.gateway"),
    "litellm": Command(options.LiteLLMConfig, "benchmarks.litellm"),
    "replicas": Command(options.ReplicasBenchmarkConfig, "benchmarks.replicas"),
    "annotation": Command(options.AnnotationBenchmarkConfig, "benchmarks.annotation"),
}

if __name__ == "__main__":
    run_command(COMMANDS)

"""Speed and memory of the annotation pipeline as the corpus grows.

python -m utils.benchmark_annotation --input responses.jsonl --times 0.25 1 4
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from utils.cli import run_command
from utils.files import InputError, refuse_file, write_json
from utils.run_record import start_record
from utils.sources import iterate_file

INTERVAL = 0.5  # seconds between two looks at the memory


@dataclass
class BenchmarkConfig:
    """Options of the benchmark."""

    input: str = field(metadata={"help": "Judged responses, as for build_fineharm."})
    times: list[float] = field(
        default_factory=lambda: [1.0, 4.0, 16.0],
        metadata={"help": "Sizes to measure, in multiples of the input."},
    )
    annotator: str = field(default="response", metadata={"help": "Annotator: response or mil."})
    output: str = field(default="annotation.json", metadata={"help": "JSON file to write."})
    overwrite: bool = field(default=False, metadata={"help": "Replace that file."})

    def __post_init__(self) -> None:
        if not self.times or min(self.times) <= 0:
            raise InputError("--times: positive numbers are needed")
        if self.annotator not in ("response", "mil"):
            raise InputError(f"--annotator: '{self.annotator}' is neither response nor mil")


def multiply(source: Path, times: float, target: Path) -> int:
    """Writes a corpus of `times` the size; returns its number of rows.

    Copies differ from their original: the words of a response are rotated, so that no copy is a
    duplicate, and its sentences come to stand elsewhere.
    """
    written = 0
    with open(target, "w", encoding="utf-8") as file:
        for copy in range(max(1, round(times))):
            for number, (_, row) in enumerate(iterate_file(source)):
                if times < 1 and number % round(1 / times):
                    continue
                words = row["response"].split(" ")
                shift = copy * len(words) // (round(times) + 1)
                row |= {
                    "id": f"{number}-{copy}",
                    "prompt": f"{row['prompt']}" + f" ({copy})" * (copy > 0),
                    "response": " ".join(words[shift:] + words[:shift]),
                }
                print(json.dumps(row), file=file)
                written += 1
    return written


def measure(source: Path, annotator: str, folder: Path) -> tuple[float, int]:
    """Builds FineHarm records in a process of its own.

    Returns:
        Seconds, and the peak resident memory in bytes of it and all its children together.

    Raises:
        InputError: The build failed.
    """
    command = [sys.executable, "-m", "utils.build_fineharm", "--input", str(source)]
    command += ["--output-dir", str(folder), "--annotator", annotator]
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as build:
        root = psutil.Process(build.pid)
        while build.poll() is None:
            try:
                family = [root, *root.children(recursive=True)]
                peak = max(peak, sum(process.memory_info().rss for process in family))
            except psutil.NoSuchProcess:  # one ended between the two calls
                pass
            time.sleep(INTERVAL)
    if build.returncode:
        raise InputError(f"{source}: the build ended with status {build.returncode}")
    return time.perf_counter() - began, peak


def main(config: BenchmarkConfig) -> None:
    """Measures each size, prints a table and writes it."""
    refuse_file(Path(config.output), config.overwrite)
    result = start_record(config) | {"status": "finished", "sizes": []}
    for times in config.times:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "rows.jsonl"
            rows = multiply(Path(config.input), times, source)
            seconds, peak = measure(source, config.annotator, Path(scratch) / "out")
        size = {"times": times, "rows": rows, "seconds": seconds, "peak_bytes": peak}
        result["sizes"].append(size | {"records_per_second": rows / seconds})
    write_json(Path(config.output), result)
    print(f"{'size':>6}{'rows':>9}{'seconds':>9}{'records/s':>11}{'peak memory, MB':>17}")
    for size in result["sizes"]:
        print(
            f"{size['times']:>6g}{size['rows']:>9}{size['seconds']:>9.0f}"
            f"{size['records_per_second']:>11.1f}{size['peak_bytes'] / 1e6:>17.0f}"
        )
    print(f"written to {config.output}")


if __name__ == "__main__":
    run_command(BenchmarkConfig, main)

"""Speed and memory of the annotation pipeline as the corpus grows.

python -m benchmarks annotation --input responses.jsonl --times 0.25 1 4
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from annotation.sources import iterate_file
from benchmarks.options import AnnotationBenchmarkConfig
from benchmarks.timing import print_row, recorded
from data.fineharm import text_field
from utils.files import InputError, read_json, write_json

INTERVAL = 0.5  # seconds between two looks at the memory


def multiply(source: Path, times: float, target: Path) -> int:
    """Writes a corpus of `times` the size; returns its number of rows.

    In a copy every fourth word stands elsewhere in its response, so that it is no near duplicate
    and yet as long and as hard to parse.
    """
    written = 0
    with open(target, "w", encoding="utf-8") as file:
        for copy in range(max(1, round(times))):
            for number, (where, row) in enumerate(iterate_file(source)):
                if times < 1 and number % round(1 / times):
                    continue
                words = text_field(row, "response", where).split(" ")
                moved = words[::4]
                shift = copy * len(moved) // (round(times) + 1)
                words[::4] = moved[shift:] + moved[:shift]
                row |= {
                    "id": f"{number}-{copy}",
                    "prompt": text_field(row, "prompt", where) + f" ({copy})" * (copy > 0),
                    "response": " ".join(words),
                }
                print(json.dumps(row), file=file)
                written += 1
    return written


def measure(source: Path, annotator: str, folder: Path) -> tuple[float, int]:
    """Builds FineHarm records in a process of its own.

    Returns:
        Seconds, and the peak resident memory in bytes of it and all its children together.
    """
    options = ["--input", str(source), "--output-dir", str(folder)]
    command = [sys.executable, "-m", "annotation", annotator, *options]
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


def main(config: AnnotationBenchmarkConfig) -> None:
    """Measures each size, prints it and writes it."""
    with recorded(config) as result:
        result["sizes"] = []
        for times in config.times:
            with tempfile.TemporaryDirectory() as scratch:
                source, folder = Path(scratch) / "rows.jsonl", Path(scratch) / "out"
                rows = multiply(Path(config.input), times, source)
                seconds, peak = measure(source, config.annotator, folder)
                parsed = read_json(folder / "stats.json")["parsed"]
            size = {
                "times": times,
                "rows": rows,
                "parsed": parsed,
                "seconds": seconds,
                "peak_bytes": peak,
                "records_per_second": rows / seconds,
            }
            result["sizes"].append(size)
            print_row(size)
            write_json(Path(config.output), result)  # the next size may take hours

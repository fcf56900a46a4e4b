"""What every benchmark does: time several ways of one thing, and write down what was found."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.options import BenchmarkConfig
from utils.files import refuse_file, write_json
from utils.run_record import start_record


@contextmanager
def recorded(config: BenchmarkConfig) -> Iterator[dict[str, Any]]:
    """Yields the record of the run, to be filled with results, and writes it at the end.

    Raises:
        InputError: The file exists and may not be replaced.
    """
    refuse_file(Path(config.output), config.overwrite)
    record = start_record(config)
    yield record
    write_json(Path(config.output), record | {"status": "finished"})
    print(f"written to {config.output}")


def compare(
    ways: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Times several ways in turn, one of them "ours", after rounds of warming up.

    Returns:
        "seconds": the median of each way; "ratio": how many times longer than ours it took; "all".
        And what each way returned last.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    last = {}
    for _ in range(warm_up + repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            last[name] = way()
            times[name].append(time.perf_counter() - began)
    times = {name: values[warm_up:] for name, values in times.items()}
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratio = {name: value / seconds["ours"] for name, value in seconds.items() if name != "ours"}
    return {"seconds": seconds, "ratio": ratio, "all": times}, last


def per_second(result: dict[str, Any], amount: float) -> dict[str, float]:
    """Returns how much of an amount each way of a comparison does a second."""
    return {way: amount / seconds for way, seconds in result["seconds"].items()}


def largest_difference(ours: Sequence[np.ndarray], padded: Sequence[np.ndarray]) -> float:
    """Returns the largest difference between the scores of two ways, [N] arrays [T] each."""
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, padded, strict=True))


def print_row(row: dict[str, float | str]) -> None:
    """Prints a row of results under the names that they have in the file."""
    formats = {float: ",.1f", int: ","}
    cells = (f"{name} {value:{formats.get(type(value), '')}}" for name, value in row.items())
    print(", ".join(cells), flush=True)

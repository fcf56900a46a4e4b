"""Timing several ways of doing one thing side by side."""

import statistics
import time
from collections.abc import Callable


def compare(ways: dict[str, Callable[[], object]], repeats: int) -> dict:
    """Times several ways in turn.

    Args:
        ways: What to time; one is "ours".
        repeats: How often.

    Returns:
        "seconds": the median of each way; "ratio": how many times longer than ours it took; "all".
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratio = {name: value / seconds["ours"] for name, value in seconds.items() if name != "ours"}
    return {"seconds": seconds, "ratio": ratio, "all": times}

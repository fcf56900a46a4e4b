"""Speed of the gateway (run-benchmark.sh gateway): what it adds, and many streams for long.

Upstream, bare proxy and gateway are processes of their own. The same answers are read straight from
the upstream, through a proxy of the same stack that judges nothing, and through the gateway.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import numpy as np
import psutil

from benchmarks.options import GatewayBenchmarkConfig
from benchmarks.stub_llm import words
from benchmarks.timing import print_row, recorded
from utils.files import InputError


@contextmanager
def server(*words: str) -> Iterator[tuple[str, psutil.Process]]:
    """Starts a server; yields its address and process."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = process.stdout.readline()
        if "http" not in line:
            raise InputError(f"{' '.join(words[:2])}: did not start; try it by itself")
        url = next(word for word in line.split() if word.startswith("http")).rstrip(";")
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def read_answer(client: httpx2.AsyncClient, url: str, tokens: int) -> dict[str, Any]:
    """Reads one answer; returns its text, when its texts came, and whether it ended as it should.

    Times are in seconds from the request on.
    """
    body = {"model": "stub", "max_tokens": tokens, "stream": True}
    body["messages"] = [{"role": "user", "content": "Tell a story."}]
    text, times, finish, began = "", [], None, time.perf_counter()
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            return {"text": "", "times": [], "finish": f"status {reply.status_code}"}
        async for event in httpx2.EventSource(reply):
            if event.data == "[DONE]":
                break
            chunk = json.loads(event.data)
            if "error" in chunk:
                return {"text": text, "times": times, "finish": chunk["error"]["code"]}
            choice = chunk["choices"][0]
            if piece := choice["delta"].get("content"):
                text += piece
                times.append(time.perf_counter() - began)
            finish = choice["finish_reason"] or finish
    return {"text": text, "times": times, "finish": finish}


def measure_latency(urls: dict[str, str], config: GatewayBenchmarkConfig) -> list[dict[str, float]]:
    """Times the first text and the steps between texts, of one stream; a row a way."""

    async def measure() -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list] = {name: [] for name in urls}
        async with httpx2.AsyncClient(timeout=300, trust_env=False) as client:
            for _ in range(config.repeats + 1):
                for name, url in urls.items():
                    found[name].append(await read_answer(client, url, config.tokens))
        return found

    rows = []
    for name, answers in asyncio.run(measure()).items():
        answers = answers[1:]  # the first one warms up
        steps = np.concatenate([np.diff(one["times"]) for one in answers])
        rows.append(
            {
                "way": name,
                "first_text_ms": 1e3 * float(np.median([one["times"][0] for one in answers])),
                "last_text_ms": 1e3 * float(np.median([one["times"][-1] for one in answers])),
                "between_ms_median": 1e3 * float(np.median(steps)),
                "between_ms_99": 1e3 * float(np.percentile(steps, 99)),
            }
        )
        print_row(rows[-1])
    return rows


def measure_cost(
    ways: dict[str, tuple[str, psutil.Process]], config: GatewayBenchmarkConfig
) -> list[dict[str, float]]:
    """Measures the processor time of a chunk, of answers that come at once; a row a way."""
    rows = []

    async def answers(url: str) -> None:
        async with httpx2.AsyncClient(timeout=300, trust_env=False) as client:
            await asyncio.gather(*(read_answer(client, url, config.tokens) for _ in range(8)))

    for name, (url, process) in ways.items():
        asyncio.run(answers(url))
        spent = []
        for _ in range(config.repeats):
            before = process.cpu_times()
            asyncio.run(answers(url))
            after = process.cpu_times()
            spent.append(after.user + after.system - before.user - before.system)
        cost = 1e6 * float(np.median(spent)) / (8 * config.tokens)
        rows.append({"way": name, "microseconds_a_chunk": cost})
        print_row(rows[-1])
    return rows


def measure_load(
    url: str, process: psutil.Process, config: GatewayBenchmarkConfig
) -> dict[str, Any]:
    """Keeps many streams open for a time; returns what went wrong and how memory grew."""
    expected = "".join(words(config.tokens))
    memory, wrong, delays = [], [], []
    ended = 0

    async def user(client: httpx2.AsyncClient, until: float, wait: float) -> None:
        nonlocal ended
        await asyncio.sleep(wait)
        while time.monotonic() < until:
            answer = await read_answer(client, url, config.tokens)
            ended += 1
            if answer["finish"] != "stop" or answer["text"] != expected:
                wrong.append(answer["finish"])
            elif config.rate:
                delays.append(answer["times"][-1] - (config.tokens - 1) / config.rate)

    async def watch(until: float) -> None:
        while time.monotonic() < until:
            memory.append(process.memory_info().rss / 1e6)
            await asyncio.sleep(config.seconds / 60)

    async def load() -> None:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(timeout=300, limits=limits, trust_env=False) as client:
            until = time.monotonic() + config.seconds
            spread = min(config.tokens / config.rate, config.seconds / 2) if config.rate else 0
            waits = [spread * number / config.streams for number in range(config.streams)]
            users = [user(client, until, wait) for wait in waits]
            await asyncio.gather(watch(until), *users)

    began = time.monotonic()
    asyncio.run(load())
    took = time.monotonic() - began
    quarter = max(1, len(memory) // 4)
    return {
        "streams": config.streams,
        "seconds": took,
        "answers": ended,
        "wrong": len(wrong),
        "kinds": sorted({str(one) for one in wrong}),
        "tokens_a_second": ended * config.tokens / took,
        "late_seconds_median": float(np.median(delays)) if delays else 0.0,
        "megabytes_second_quarter": float(np.median(memory[quarter : 2 * quarter] or memory)),
        "megabytes_last_quarter": float(np.median(memory[-quarter:])),
    }


def main(config: GatewayBenchmarkConfig) -> None:
    """Measures and writes the file.

    Raises:
        InputError: A server does not start.
    """
    with recorded(config) as record, ExitStack() as stack:

        def started(*words: str) -> tuple[str, psutil.Process]:
            return stack.enter_context(server(*words))

        def gateway(upstream: str) -> tuple[str, psutil.Process]:
            options = ["--model-path", config.model_path, "--upstream", f"{upstream}/v1"]
            options += ["--settings", config.settings] if config.settings else []
            places = ["--max-streams", str(max(config.streams, 8)), "--port", "0"]
            return started("serve", "gateway", *options, *places)

        steady, at_once = (started("benchmarks.stub_llm", str(one)) for one in (config.rate, 0))
        proxies = {
            "bare proxy": started("benchmarks.stub_llm", at_once[0]),
            "gateway": gateway(at_once[0]),
        }
        record["cost"] = measure_cost(proxies, config)
        slow = gateway(steady[0])
        urls = {
            "upstream": steady[0],
            "bare proxy": started("benchmarks.stub_llm", steady[0])[0],
            "gateway": slow[0],
        }
        record["latency"] = measure_latency(urls, config)
        if config.seconds:
            record["load"] = measure_load(*slow, config)
            print_row({k: v for k, v in record["load"].items() if k != "kinds"})

"""Speed of the monitor: one token more, many streams, generation (run-benchmark.sh monitor).

The time of one further token is measured beside its floor, a bare decode step of the same backbone
with transformers' static cache, and beside reading the whole prefix again; then how many tokens a
second many streams get together, and how much longer an LLM's generation takes with the monitor at
its side. The heads are random: what they say does not change what they cost.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, StaticCache

from benchmarks.options import WARM_UP, MonitorBenchmarkConfig
from benchmarks.timing import compare, recorded
from data.tokenization import load_tokenizer
from model.loading import load_checkpoint
from model.qwen_dual_task import QwenForDualTask, load_backbone
from monitor.generation import MonitorCriteria
from monitor.rules import DelayK, Policy
from monitor.settings import MonitorSettings
from monitor.stream import Stream, StreamingContentMonitor
from utils.device import default_device
from utils.files import InputError

FILL = 128  # tokens of each of many streams before they are timed
PROMPT = "Why is the sky blue, and why is it red in the evening?"
# a stream that is never stopped does all the work
SETTINGS = MonitorSettings(Policy(DelayK(4096), 1.0), "token", 0.5)


def measure_latency(
    monitor: StreamingContentMonitor,
    plain: QwenForDualTask,
    ids: list[int],
    config: MonitorBenchmarkConfig,
) -> list[dict[str, float]]:
    """Times one further token at each position; a row a position."""
    rows = []
    for position in config.positions:
        before = position - config.repeats - WARM_UP
        stream = monitor.open("")
        stream.feed_ids(ids[: before - stream.cache.length])
        bare = static_step(plain, ids[:before], position)
        ways = {"ours": lambda stream=stream: stream.feed_ids(ids[:1]), "bare": bare}
        times = compare(ways, config.repeats, WARM_UP)["seconds"]
        again = compare({"ours": whole_prefix(plain, ids[:position])}, config.reread)
        rows.append(
            {
                "position": position,
                "ours_ms": 1e3 * times["ours"],
                "bare_step_ms": 1e3 * times["bare"],
                "prefix_again_ms": 1e3 * again["seconds"]["ours"],
                "cache_megabytes": stream.cache.nbytes / 1e6,
            }
        )
        stream.close()
        print(
            "position {position:5d}: ours {ours_ms:7.1f} ms, bare decode step"
            " {bare_step_ms:7.1f} ms, prefix again {prefix_again_ms:9.1f} ms,"
            " {cache_megabytes:6.1f} MB a stream".format(**rows[-1])
        )
    return rows


def static_step(plain: QwenForDualTask, ids: list[int], capacity: int) -> Callable[[], None]:
    """Returns a bare decode step of the backbone, its static cache filled with `ids`."""
    cache = StaticCache(config=plain.config, max_cache_len=capacity)

    @torch.inference_mode()
    def step(ids: Sequence[int] = ids[:1]) -> None:
        tokens = torch.tensor([ids], device=plain.device)
        plain.model(input_ids=tokens, past_key_values=cache, use_cache=True)

    step(ids)
    return step


def whole_prefix(plain: QwenForDualTask, ids: list[int]) -> Callable[[], None]:
    """Returns a pass over a whole prefix: what each token costs a monitor without a cache."""

    @torch.inference_mode()
    def read() -> None:
        plain(input_ids=torch.tensor([ids], device=plain.device))

    return read


def measure_streams(
    monitor: StreamingContentMonitor, ids: list[int], config: MonitorBenchmarkConfig
) -> list[dict[str, float]]:
    """Times steps of many streams, a token each; a row a number of streams."""
    rows = []
    for count in config.streams:
        streams = [monitor.open("") for _ in range(count)]
        for number, stream in enumerate(streams):
            stream.feed_ids(np.roll(ids[:FILL], number).tolist())
        step = {"ours": common_step(monitor, streams, ids)}
        seconds = compare(step, config.repeats, WARM_UP)["seconds"]["ours"]
        rows.append(
            {
                "streams": count,
                "tokens_per_second": count / seconds,
                "step_ms": 1e3 * seconds,
                "caches_megabytes": sum(stream.cache.nbytes for stream in streams) / 1e6,
            }
        )
        for stream in streams:
            stream.close()
        print(
            "{streams:4d} streams: {tokens_per_second:7.1f} tokens/s, {step_ms:7.1f} ms a step,"
            " {caches_megabytes:7.1f} MB".format(**rows[-1])
        )
    return rows


def common_step(
    monitor: StreamingContentMonitor, streams: list[Stream], ids: list[int]
) -> Callable[[], None]:
    """Returns a step of many streams: each gets the next token and is judged."""
    tokens = iter(ids)

    def step() -> None:
        token = next(tokens)
        for stream in streams:
            stream.receive_ids([token])
        monitor.advance(streams)
        for stream in streams:
            stream.verdict()

    return step


def measure_generation(
    monitor: StreamingContentMonitor, config: MonitorBenchmarkConfig
) -> dict[str, float]:
    """Times an LLM, which is the monitor's own backbone, with and without the monitor."""
    llm, _ = load_checkpoint(
        Path(config.base_model_path), AutoModelForCausalLM, "language model", "--base-model-path"
    )
    llm = llm.to(default_device())
    inputs = monitor.tokenizer(PROMPT, return_tensors="pt").to(llm.device)

    def generate(criteria: list[MonitorCriteria]) -> None:
        llm.generate(
            **inputs, max_new_tokens=config.new_tokens, min_new_tokens=config.new_tokens,
            do_sample=False, stopping_criteria=criteria,
        )  # fmt: skip

    def monitored() -> None:
        length = inputs["input_ids"].shape[1]
        with MonitorCriteria(monitor, PROMPT, monitor.tokenizer, length) as criteria:
            generate([criteria])

    ways = {"ours": monitored, "alone": lambda: generate([])}
    seconds = compare(ways, config.reread, 1)["seconds"]
    result = {
        "with_monitor_ms": 1e3 * seconds["ours"] / config.new_tokens,
        "alone_ms": 1e3 * seconds["alone"] / config.new_tokens,
    }
    print(
        "generation: {with_monitor_ms:.1f} ms a token with the monitor, {alone_ms:.1f} without"
        .format(**result)
    )  # fmt: skip
    return result


def main(config: MonitorBenchmarkConfig) -> None:
    """Runs all measurements and writes them down."""
    with recorded(config) as result:
        folder, device = Path(config.base_model_path), default_device()
        torch.manual_seed(config.seed)
        # one model follows streams, the other one is left as it is
        model, plain = (
            load_backbone(folder, alpha=0.6, logic_weight=1, token_dropout=0).to(device).eval()
            for _ in range(2)
        )
        monitor = StreamingContentMonitor(model, load_tokenizer(folder), SETTINGS)
        if max(config.positions) > monitor.context:
            raise InputError(f"--positions: the model's context is {monitor.context} tokens")
        random = np.random.default_rng(config.seed)
        ids = random.integers(len(monitor.tokenizer), size=monitor.context).tolist()
        result["latency"] = measure_latency(monitor, plain, ids, config)
        result["streams"] = measure_streams(monitor, ids, config)
        result["generation"] = measure_generation(monitor, config)

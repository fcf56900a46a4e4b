"""Speed of the monitor: one token more, many streams, generation (run-benchmark.sh monitor).

The time of one further token is measured beside its floor, a bare decode step of the same backbone
with transformers' static cache, and beside reading the whole prefix again; then how many tokens a
second many streams get together, and how much longer an LLM's generation takes with the monitor at
its side. The heads are random: what they say does not change what they cost.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, StaticCache

from benchmarks.options import WARM_UP, MonitorBenchmarkConfig
from benchmarks.timing import compare, print_row, recorded
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


@torch.inference_mode()
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
        tokens = torch.tensor([ids[:position]], device=plain.device)
        cache = StaticCache(config=plain.config, max_cache_len=position)
        bare = partial(plain.model, past_key_values=cache, use_cache=True)
        bare(input_ids=tokens[:, :before])
        ways = {
            "ours": partial(stream.feed_ids, ids[:1]),
            "bare": partial(bare, input_ids=tokens[:, :1]),
        }
        times, _ = compare(ways, config.repeats, WARM_UP)
        # what each token costs a monitor without a cache
        again, _ = compare({"ours": partial(plain, input_ids=tokens)}, config.reread)
        rows.append(
            {
                "position": position,
                "ours_ms": 1e3 * times["seconds"]["ours"],
                "bare_step_ms": 1e3 * times["seconds"]["bare"],
                "prefix_again_ms": 1e3 * again["seconds"]["ours"],
                "cache_megabytes": stream.cache.nbytes / 1e6,
            }
        )
        stream.close()
        print_row(rows[-1])
    return rows


def measure_streams(
    monitor: StreamingContentMonitor, ids: list[int], config: MonitorBenchmarkConfig
) -> list[dict[str, float]]:
    """Times steps of many streams, a token each; a row a number of streams."""
    rows = []
    for count in config.streams:
        streams = [monitor.open("") for _ in range(count)]
        for number, stream in enumerate(streams):
            stream.feed_ids(np.roll(ids[:FILL], number).tolist())
        step = partial(advance, monitor, streams, iter(ids))
        times, _ = compare({"ours": step}, config.repeats, WARM_UP)
        seconds = times["seconds"]["ours"]
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
        print_row(rows[-1])
    return rows


def advance(monitor: StreamingContentMonitor, streams: list[Stream], ids: Iterator[int]) -> None:
    """Gives each of many streams the next token and asks for its verdict."""
    token = next(ids)
    for stream in streams:
        stream.receive_ids([token])
    monitor.advance(streams)
    for stream in streams:
        stream.verdict()


def measure_generation(
    monitor: StreamingContentMonitor, config: MonitorBenchmarkConfig
) -> dict[str, float]:
    """Times an LLM, which is the monitor's own backbone, with and without the monitor."""
    folder = Path(config.base_model_path)
    llm, _ = load_checkpoint(folder, AutoModelForCausalLM, "language model", "--base-model-path")
    llm = llm.to(default_device())
    inputs = monitor.tokenizer(PROMPT, return_tensors="pt").to(llm.device)
    length = inputs["input_ids"].shape[1]
    tokens = {"min_new_tokens": config.new_tokens, "max_new_tokens": config.new_tokens}
    generate = partial(llm.generate, **inputs, **tokens, do_sample=False)

    def monitored() -> None:
        with MonitorCriteria(monitor, PROMPT, monitor.tokenizer, length) as criteria:
            generate(stopping_criteria=[criteria])

    ways = {"ours": monitored, "alone": generate}
    times, _ = compare(ways, config.reread, 1)
    result = {
        "with_monitor_ms": 1e3 * times["seconds"]["ours"] / config.new_tokens,
        "alone_ms": 1e3 * times["seconds"]["alone"] / config.new_tokens,
    }
    print_row(result)
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

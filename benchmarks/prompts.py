"""Speed of the moderator of prompts: its verdict, and its fits (scripts/run-benchmark.sh prompts).

The prefill of a language model, what the first step of `generate` does, is timed as it is, with
hooks that rest, with hooks that take states, and with a verdict; so is the opening of a stream of
the monitor. The ways take turns on the same weights. What one adds is the median of its differences
from the bare way of the same turn: other jobs slow both alike.

States for the fits are made up, and mapped from disk as the cache gives them: what they say changes
nothing but how long the regression takes.
"""

import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.monitor import PROMPT, SETTINGS
from benchmarks.options import WARM_UP, PromptBenchmarkConfig
from benchmarks.timing import compare, print_row, recorded
from data.tokenization import load_tokenizer
from model.layer_states import LayerStates
from model.loading import context_length, load_checkpoint
from model.qwen_dual_task import load_backbone
from model.state_store import read_states, write_states
from moderator.moderator import About, Moderator, Rows
from moderator.prompts import BENIGN
from moderator.readers import SHARD
from moderator.train import HARMFUL
from monitor.stream import StreamingContentMonitor
from utils.device import default_device
from utils.files import InputError

FITS = 3  # of each size; the median counts
APART = 0.1  # between the classes' means of made-up states, whose spread is 1


def twin(model: nn.Module) -> nn.Module:
    """Returns a copy of a model on the same weights: hooks of one are not the other's."""
    shared = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return deepcopy(model, shared)


def added(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Times ways, one of them "ours", beside one that is called "bare".

    Returns:
        The bare way's median in ms, and what each other way adds to it, in ms and in percent.
    """
    times, _ = compare(ways, repeats, WARM_UP)
    row = {"bare_ms": 1e3 * times["seconds"]["bare"]}
    for name in [name for name in ways if name != "bare"]:
        pairs = zip(times["all"][name], times["all"]["bare"], strict=True)
        extra = 1e3 * statistics.median(one - bare for one, bare in pairs)
        row |= {f"{name}_adds_ms": extra, f"{name}_adds_percent": 100 * extra / row["bare_ms"]}
    return row


def source_of(model: PreTrainedModel) -> dict[str, Any]:
    """Returns what a moderator of made-up states has to know of a model."""
    return {
        "kind": "made up",
        "layers": model.config.num_hidden_layers,
        "hidden": model.config.hidden_size,
    }


@torch.inference_mode()
def measure_prefill(
    model: PreTrainedModel, moderator: Moderator, config: PromptBenchmarkConfig
) -> dict[str, float]:
    """Times the prefill of a language model, bare and with what a verdict takes."""
    random = np.random.default_rng(config.seed)
    ids = random.integers(model.config.vocab_size, size=(1, config.tokens))
    tokens = torch.from_numpy(ids).to(model.device)
    models = {name: twin(model) for name in ("bare", "resting", "hooks")}
    resting, states = LayerStates(models["resting"]), LayerStates(models["hooks"])
    resting.resting = True
    seconds: list[float] = []

    def prefill(name: str) -> None:
        output = models[name](input_ids=tokens, use_cache=True, logits_to_keep=1)
        output.logits.argmax().item()  # waits for a GPU

    def verdict() -> None:
        prefill("hooks")
        began = time.perf_counter()
        moderator.judge(states.take())
        seconds.append(time.perf_counter() - began)

    ways = {name: partial(prefill, name) for name in models} | {"ours": verdict}
    row = {"tokens": config.tokens, **added(ways, config.repeats)}
    alone = 1e3 * statistics.median(seconds[WARM_UP:])
    row |= {"verdict_alone_ms": alone, "verdict_alone_percent": 100 * alone / row["bare_ms"]}
    print_row(row)
    return row


def measure_opening(moderator: Moderator, config: PromptBenchmarkConfig) -> dict[str, float]:
    """Times the opening of a stream, which reads the prompt, without a moderator and with one."""
    folder = Path(config.base_model_path)
    model = load_backbone(folder, alpha=0.6, logic_weight=1, token_dropout=0).eval()
    model, tokenizer = model.to(default_device()), load_tokenizer(folder)
    bare = StreamingContentMonitor(twin(model), tokenizer, SETTINGS)
    about = moderator.about.model_copy(update={"source": bare.prompt_source()})
    judge = replace(moderator, about=about)
    ours = StreamingContentMonitor(model, tokenizer, SETTINGS, moderator=judge)
    text = tokenizer.decode(tokenizer(f"{PROMPT} " * config.tokens)["input_ids"][: config.tokens])

    def opened(monitor: StreamingContentMonitor) -> None:
        with monitor.open(text) as stream:
            stream.verdict()

    ways = {"bare": partial(opened, bare), "ours": partial(opened, ours)}
    row = {"tokens": len(bare.prompt_ids(text)), **added(ways, config.repeats)}
    print_row(row)
    return row


def made_up(count: int, source: dict[str, Any], folder: Path, seed: int) -> Rows:
    """Writes states of two classes as the cache does, and maps them; an eighth is validation."""
    layers, hidden = source["layers"], source["hidden"]
    random, label = np.random.default_rng(seed), np.arange(count) % 2
    for start in range(0, count, SHARD):
        part = range(start, min(start + SHARD, count))
        states = (
            (str(row), random.standard_normal((layers, hidden), np.float32) + APART * label[row])
            for row in part
        )
        shape = len(part) * layers, hidden
        write_states(folder, [str(row) for row in part], shape, states, "made-up states")
    known = read_states(folder)
    valid = np.arange(count) // 2 % 8 == 7
    return Rows([known[str(row)] for row in range(count)], label, label, valid)


def measure_fits(
    source: dict[str, Any], config: PromptBenchmarkConfig
) -> tuple[list[dict[str, float]], Moderator]:
    """Times fits on more and more prompts; a row a number of prompts, and the last moderator.

    The peak is of what NumPy and Python ask for; a mapped file's pages are the system's to drop.
    """
    about = About(
        source=source, classes=[BENIGN, HARMFUL], counts=[], prototype="gda", combine="l1", c=1.0,
        intercept=0.0, target_false_alarm=0.0, threshold=None,
    )  # fmt: skip
    rows = []
    for count in config.samples:
        with tempfile.TemporaryDirectory() as folder:
            made = made_up(count, source, Path(folder), config.seed)
            times, last = compare({"ours": partial(Moderator.fit, about, made)}, FITS)
            tracemalloc.start()
            Moderator.fit(about, made)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        states = 4 * count * source["layers"] * source["hidden"]
        rows.append(
            {
                "prompts": count,
                "seconds": times["seconds"]["ours"],
                "peak_megabytes": peak / 1e6,
                "states_megabytes": states / 1e6,
            }
        )
        print_row(rows[-1])
    return rows, last["ours"]


def main(config: PromptBenchmarkConfig) -> None:
    """Runs all measurements and writes them down.

    Raises:
        InputError: The model has no room for so many tokens, or the disk none for the states.
    """
    with recorded(config) as result:
        folder, option = Path(config.base_model_path), "--base-model-path"
        torch.manual_seed(config.seed)
        model, tokenizer = load_checkpoint(folder, AutoModelForCausalLM, "language model", option)
        model = model.to(default_device()).eval()
        most = context_length(model, tokenizer) // 2
        if config.tokens > most:
            raise InputError(f"--tokens: a monitor of this model reads {most} of a prompt")
        result["fits"], moderator = measure_fits(source_of(model), config)
        result["prefill"] = measure_prefill(model, moderator, config)
        result["opening"] = measure_opening(moderator, config)

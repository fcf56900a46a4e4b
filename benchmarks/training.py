"""Speed against the same code made to pad everything to 4,096 tokens (scripts/run-benchmark.sh).

Losses and scores are compared as well: padding costs time, it must not change a number. Data
preparation is measured against padding alone and against the release's way (`benchmarks.release`).
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import torch

from benchmarks.options import TrainingBenchmarkConfig
from benchmarks.release import padded_dataset, prepare_as_released
from benchmarks.timing import compare, largest_difference, per_second, recorded
from data.alignment import EncodedRecord, Layout
from data.batches import collate, count_items
from data.fineharm import find_split, read_split
from data.prepare import encode_split, to_dataset
from data.splits import Examples, to_examples
from data.tokenization import leading_ids, load_tokenizer
from evaluation.predict import predict
from model.qwen_dual_task import load_backbone
from utils.device import autocast, default_device, use_bf16


def benchmark_data(config: TrainingBenchmarkConfig, tokenizer, records: list) -> dict:
    """Compares data preparation, from records in memory to a saved dataset."""
    many = [records[number % len(records)] for number in range(config.records)]
    length = config.padded_length
    layout = Layout("newline", length, tuple(leading_ids(tokenizer)))

    def save(dataset: datasets.Dataset) -> None:
        with tempfile.TemporaryDirectory() as folder:
            dataset.save_to_disk(folder)

    def encode() -> list[EncodedRecord]:
        return encode_split(many, tokenizer.backend_tokenizer, layout, num_workers=0)

    ways = {
        "ours": lambda: save(to_dataset(encode())),
        "padded": lambda: save(padded_dataset(encode(), length)),
        "released": lambda: save(prepare_as_released(many, tokenizer, length)),
    }
    result, _ = compare(ways, config.repeats)
    return result | {"records_per_second": per_second(result, len(many))}


def benchmark_model(config: TrainingBenchmarkConfig, examples: Examples) -> dict:
    """Compares training and scoring, and the losses and scores that come out."""
    device = default_device()
    bf16 = use_bf16(config.precision, device)
    torch.manual_seed(config.seed)
    model = load_backbone(
        Path(config.base_model_path), alpha=0.6, logic_weight=1.0, token_dropout=0.0
    ).to(device)
    # a rate of zero does all the work and leaves the weights, so that losses can be compared
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)

    def training(pad_to: int, size: int) -> Callable[[], float]:
        batches = []
        for group in torch.arange(len(examples)).split(size):
            batch = collate([examples[index] for index in group], pad_to)
            batches.append({key: value.to(device) for key, value in batch.items()})

        def step() -> float:
            items = count_items(batches).to(device)
            total = 0.0
            for batch in batches:
                with autocast(bf16, device):
                    loss = model(**batch, num_items_in_batch=items).loss
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()
            return total

        return step

    def measure(ours: Callable, padded: Callable) -> tuple[dict, dict]:
        times, last = compare({"ours": ours, "padded": padded}, config.repeats)
        times["tokens_per_second"] = per_second(times, int(examples.lengths.sum()))
        times["samples_per_second"] = per_second(times, len(examples))
        return times, last

    model.train()
    # one padded response at a time: eight of 4,096 tokens would not fit into memory
    train, losses = measure(training(0, 8), training(config.padded_length, 1))
    train |= {"loss": losses, "loss_difference": abs(losses["ours"] - losses["padded"])}
    scoring = partial(predict, model, examples, bf16=bf16)
    score, found = measure(scoring, partial(scoring, pad_to=config.padded_length))
    probs = {way: scores.token_probs for way, scores in found.items()}
    return {
        "training": train,
        "scoring": score | {"largest_score_difference": largest_difference(**probs)},
    }


def main(config: TrainingBenchmarkConfig) -> None:
    """Measures, prints the ratios and writes them."""
    with recorded(config) as result:
        datasets.disable_progress_bars()
        tokenizer = load_tokenizer(Path(config.base_model_path))
        records = read_split(find_split(Path(config.input_dir), "train"), "train")
        result["data"] = benchmark_data(config, tokenizer, records)
        layout = Layout("newline", config.padded_length, tuple(leading_ids(tokenizer)))
        encoded = encode_split(records[: config.samples], tokenizer.backend_tokenizer, layout)
        result |= benchmark_model(config, to_examples(encoded))
        report(result)


def report(result: dict) -> None:
    """Prints rates and ratios, and what losses and scores differ by."""
    for part, unit in (("data", "records"), ("training", "samples"), ("scoring", "samples")):
        rates = result[part][f"{unit}_per_second"]
        print(f"{part}: {rates['ours']:.2f} {unit}/s")
        for way, ratio in result[part]["ratio"].items():
            print(f"  {ratio:.1f} times as fast as {way}, {rates[way]:.2f} {unit}/s")
    for part in ("training", "scoring"):
        print(f"{part}: {result[part]['tokens_per_second']['ours']:.0f} tokens/s without padding")
    loss = result["training"]["loss"]
    print(f"loss: {loss['ours']:.6f} ours, {loss['padded']:.6f} padded")
    print(f"largest score difference: {result['scoring']['largest_score_difference']:.1e}")

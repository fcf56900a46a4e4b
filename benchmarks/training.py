"""Speed against the same code made to pad everything to 4,096 tokens (scripts/run-benchmark.sh).

Losses and scores are compared as well: padding costs time, it must not change a number. Data
preparation is measured against padding alone and against the release's way (`benchmarks.release`).
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import torch
from torch import nn

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
    result = compare(ways, config.repeats)
    return result | {"records_per_second": per_second(result, len(many))}


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[dict], bf16: bool
) -> float:
    """Does one optimiser step over micro-batches; returns the loss of all of them."""
    device = next(model.parameters()).device
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


def compare_on(examples: Examples, ways: dict[str, Callable[[], None]], repeats: int) -> dict:
    """Times ways of treating examples and adds real tokens and samples a second."""
    result = compare(ways, repeats)
    return result | {
        "tokens_per_second": per_second(result, int(examples.lengths.sum())),
        "samples_per_second": per_second(result, len(examples)),
    }


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
    losses, scores = {}, {}

    def training(name: str, pad_to: int, size: int) -> Callable[[], None]:
        batches = []
        for group in torch.arange(len(examples)).split(size):
            batch = collate([examples[index] for index in group], pad_to)
            batches.append({key: value.to(device) for key, value in batch.items()})

        def way() -> None:
            losses[name] = train_step(model, optimizer, batches, bf16)

        return way

    def scoring(name: str, pad_to: int) -> Callable[[], None]:
        def way() -> None:
            scores[name] = predict(model, examples, bf16=bf16, pad_to=pad_to).token_probs

        return way

    model.train()
    # one padded response at a time: eight of 4,096 tokens would not fit into memory
    length = config.padded_length
    ways = {"ours": training("ours", 0, 8), "padded": training("padded", length, 1)}
    train = compare_on(examples, ways, config.repeats)
    ways = {"ours": scoring("ours", 0), "padded": scoring("padded", length)}
    score = compare_on(examples, ways, config.repeats)
    train |= {"loss": losses, "loss_difference": abs(losses["ours"] - losses["padded"])}
    score |= {"largest_score_difference": largest_difference(**scores)}
    return {"training": train, "scoring": score}


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
        report(result, config.repeats)


def report(result: dict, repeats: int) -> None:
    """Prints rates and ratios as a table, and what losses and scores differ by."""
    print(f"\nmedians of {repeats}; ratio: how many times faster than the way named")
    print(f"{'':32}{'ours':>10}{'that way':>10}{'ratio':>9}")
    for title, part, unit, way in (
        ("data, padded", "data", "records", "padded"),
        ("data, the release's way", "data", "records", "released"),
        ("training, padded", "training", "samples", "padded"),
        ("scoring, padded", "scoring", "samples", "padded"),
    ):
        rate, ratio = result[part][f"{unit}_per_second"], result[part]["ratio"][way]
        print(f"{title:32}{rate['ours']:10.2f}{rate[way]:10.2f}{ratio:8.1f}x  {unit}/s")
    for part in ("training", "scoring"):
        print(f"{part}: {result[part]['tokens_per_second']['ours']:.0f} tokens/s without padding")
    loss = result["training"]["loss"]
    print(f"loss: {loss['ours']:.6f} ours, {loss['padded']:.6f} padded")
    print(f"largest score difference: {result['scoring']['largest_score_difference']:.1e}")

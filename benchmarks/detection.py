"""Speed of detection: scoring, prefixes, thresholds (scripts/run-benchmark.sh detection).

Scoring by a causal model is measured against one plain forward pass of its backbone over the same
tokens; scoring every prefix by a bidirectional model, against transformers' own forward pass over
the same prefixes, each padded to its full response. The two ways' scores are compared as well.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.options import DetectionBenchmarkConfig
from benchmarks.timing import compare, largest_difference, recorded
from data.alignment import Layout
from data.batches import collate, token_budget_batches
from data.fineharm import find_split, read_split
from data.prepare import encode_split
from data.splits import Examples, to_examples
from data.tokenization import leading_ids, load_tokenizer
from evaluation.decisions import MAX_K, THETAS, macro_f1_table
from evaluation.predict import predict
from evaluation.prefixes import predict_prefixes
from model.modernbert import load_encoder
from model.modernbert_inference import ModernBertInference
from model.qwen_dual_task import load_backbone
from utils.options import TOKEN_BUDGET


def read_examples(config: DetectionBenchmarkConfig, model_path: Path) -> Examples:
    """Encodes training records drawn at random, of whatever length, for a model."""
    tokenizer = load_tokenizer(model_path)
    records = read_split(find_split(Path(config.input_dir), "train"), "train")
    drawn = np.random.default_rng(config.seed).permutation(len(records))[: config.samples]
    layout = Layout("newline", config.max_length, tuple(leading_ids(tokenizer)))
    records = [records[number] for number in drawn]
    return to_examples(encode_split(records, tokenizer.backend_tokenizer, layout, num_workers=0))


@torch.inference_mode()
def plain_pass(backbone: torch.nn.Module, examples: Examples) -> None:
    """Runs a backbone once over all tokens, in the batches that scoring makes."""
    for indices in token_budget_batches(examples.lengths, TOKEN_BUDGET):
        batch = collate([examples[index] for index in indices])
        backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


@torch.inference_mode()
def padded_prefixes(model: torch.nn.Module, examples: Examples) -> list[np.ndarray]:
    """Scores every prefix of each response, padded to the full response; [N] arrays [T]."""
    scores = []
    for ids, start in zip(examples.input_ids, examples.response_start, strict=True):
        whole = torch.from_numpy(ids.astype(np.int64))
        ends = torch.arange(int(start) + 1, len(ids) + 1)  # a row a prefix
        mask = (torch.arange(len(ids)) < ends[:, None]).long()  # (prefixes, seq_len)
        rows = max(1, TOKEN_BUDGET // len(ids))
        logits = [
            model(input_ids=whole * part, attention_mask=part).holistic_logits
            for part in mask.split(rows)
        ]
        scores.append(torch.cat(logits).softmax(-1)[:, 1].numpy())
    return scores


def main(config: DetectionBenchmarkConfig) -> None:
    """Measures, prints the ratios and writes them."""
    with recorded(config) as result:
        torch.manual_seed(config.seed)

        path = Path(config.base_model_path)
        examples = read_examples(config, path)
        causal = load_backbone(path, alpha=0.6, logic_weight=1.0, token_dropout=0.1).eval()
        ways = {
            "ours": lambda: predict(causal, examples),
            "plain": lambda: plain_pass(causal.model, examples),
        }
        result["causal"], _ = compare(ways, config.repeats)
        times = 1 / result["causal"]["ratio"]["plain"]
        tokens = int(examples.lengths.sum())
        print(f"causal: scoring {tokens} tokens takes {times:.2f} times a plain forward pass")

        path = Path(config.encoder_path)
        examples = read_examples(config, path)
        encoder = load_encoder(path).eval()
        inference = ModernBertInference(encoder).eval()
        ways = {
            "ours": lambda: predict_prefixes(inference, examples).token_probs,
            "padded": lambda: padded_prefixes(encoder, examples),
        }
        prefixes, scores = compare(ways, config.repeats)
        difference = largest_difference(**scores)
        result["prefixes"] = prefixes | {"largest_score_difference": difference}
        print(
            f"every prefix of responses of {examples.response_lengths.mean():.0f} tokens:"
            f" {len(examples) / prefixes['seconds']['ours']:.2f} samples/s,"
            f" {prefixes['ratio']['padded']:.2f} times as many as padded to the full response;"
            f" largest score difference {difference:.1e}"
        )

        random = np.random.default_rng(config.seed)
        probs = list(random.random((3000, 400), dtype=np.float32))
        label = random.integers(0, 2, len(probs))
        ways = {"ours": lambda: macro_f1_table(probs, label, THETAS, MAX_K)}
        result["sweep"], _ = compare(ways, config.repeats)
        print(
            f"all {len(THETAS) * MAX_K} (θ, k) of 3,000 responses of 400 tokens:"
            f" {result['sweep']['seconds']['ours']:.2f} s"
        )

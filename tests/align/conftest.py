"""A tiny policy with a chat template, pairs for it, and a tiny SCM that annotates them."""

import json
import shutil
from pathlib import Path

import pytest

from align.options import AlignConfig
from data.tokenization import load_tokenizer
from monitor.rules import DelayK
from monitor.settings import write_settings
from tests.conftest import save_scm, settings_of

TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}]\n{{ turn.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
CALM = ("Water it at noon.", "Bread needs salt, and time 🙂.", "Walk 慢慢地 and rest often.")
GRIM = (
    "Hit it until it breaks!",
    "Lie to them and take all of it.",
    "Burn the house, then run 🔥.",
)


def with_template(tokenizer):
    """Gives a tokenizer a chat template."""
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def policy(tmp_path_factory, tiny) -> Path:
    """The tiny backbone with a chat template."""
    folder = Path(shutil.copytree(tiny, tmp_path_factory.mktemp("policy") / "llm"))
    with_template(load_tokenizer(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def annotator(tmp_path_factory, tokenizers) -> Path:
    """A random SCM with another tokenizer than the policy's, and a θ that some tokens reach."""
    tokenizer = tokenizers("modernbert-style")
    folder = save_scm(tmp_path_factory.mktemp("scm") / "scm", tokenizer, len(tokenizer))
    write_settings(folder / "monitor.json", settings_of(DelayK(3), 0.5))
    return folder


def pair_row(number: int, split: str) -> dict:
    """Returns a row of a pairs file, of one turn or three."""
    topic = f"the garden of number {number}"
    turns = [{"role": "user", "content": f"Tell me about {topic}."}]
    if number % 2:
        turns = [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hi."},
            *turns,
        ]
    answers = {
        side: [{"role": "assistant", "content": f"{words[number % 3]} {topic}"}]
        for side, words in (("chosen", CALM), ("rejected", GRIM))
    }
    return {"id": f"{split}-{number}", "prompt": turns, **answers, "split": split, "source": "made"}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A file of 16 training pairs, 8 for validation and 8 for test."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        pair_row(number, split)
        for split, count in (("train", 16), ("valid", 8), ("test", 8))
        for number in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture()
def config(policy, pairs, tmp_path) -> AlignConfig:
    """One epoch of DPO in four steps, in float32."""
    return AlignConfig(
        str(tmp_path / "run"), str(pairs), str(policy), method="dpo", batch_size=4,
        micro_batch_size=2, learning_rate=1e-3, logging_steps=1, precision="fp32",
        max_length=128, max_prompt_length=96, state_cache=str(tmp_path / "states"),
    )  # fmt: skip

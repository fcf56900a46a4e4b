"""Prompts and states to make moderators of."""

import json
from pathlib import Path

import numpy as np
import pytest

from moderator.moderator import About, Rows
from moderator.readers import ChatReader

SOURCE = {"kind": "chat", "model": "m", "layers": 3, "hidden": 5}


def about_of(*classes: str, **changes) -> About:
    """What a moderator of these classes, the benign one besides, is to be."""
    given = {"prototype": "gda", "combine": "l1", "c": 1.0, "target_false_alarm": 0.0} | changes
    return About(
        source=SOURCE, classes=["benign", *classes], counts=[], intercept=0.0, threshold=None,
        **given,
    )  # fmt: skip


def rows_of(counts, valid=20, seed=0, apart=2.0, shape=(3, 5)) -> Rows:
    """Draws states around a mean of each class; the validation rows are half benign."""
    random = np.random.default_rng(seed)
    classes = np.concatenate([np.full(count, one) for one, count in enumerate(counts)])
    classes = np.append(classes, np.arange(valid) % len(counts))
    means = random.normal(size=(len(counts), *shape)) * apart
    states = means[classes] + random.normal(size=(len(classes), *shape))
    is_valid = np.arange(len(classes)) >= sum(counts)
    return Rows(states.astype(np.float32), classes, (classes > 0).astype(int), is_valid)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> Path:
    """A file of 72 prompts; harmful ones are of two categories, or of none."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    topics = {0: ("garden", "bread"), 1: ("weapon", "poison")}
    lines = []
    for split, count in (("train", 24), ("valid", 24), ("test", 24)):
        for number in range(count):
            label = number % 2
            topic = topics[label][number // 2 % 2]
            category = (topic, None)[number % 3 == 0] if label else None
            lines.append(
                {
                    "id": f"{split}{label}-{number}",
                    "prompt": f"Tell me all about the {topic} of number {number}, please.",
                    "label": label,
                    "split": split,
                    "category": category,
                    "source": split,
                }
            )
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="session")
def reader(tiny) -> ChatReader:
    return ChatReader.from_pretrained(tiny)

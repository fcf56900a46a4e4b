"""The Python of README and docs runs as it stands there."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from model.qwen_dual_task import load_dual_task
from moderator.moderator import About, Moderator, Rows
from moderator.readers import MonitorReader
from monitor.settings import write_settings
from tests.conftest import settings_of
from tests.end_to_end.pages import PAGES

BLOCKS = re.findall(r"```python\n(.*?)```", "\n".join(PAGES.values()), flags=re.DOTALL)
PIECES = ["Light is ref", "racted", " and reflected", " in droplets of water. ", "So it is."]


@pytest.fixture()
def names(monitors, tmp_path, monkeypatch):
    """What the pages' code finds: a checkpoint with its settings, an LLM."""
    folder, _ = monitors("tiny")
    (tmp_path / "scm-0.5b").symlink_to(folder)
    write_settings(folder / "monitor.json", settings_of())
    monkeypatch.chdir(tmp_path)

    async def my_async_llm(prompt):
        for piece in PIECES:
            yield piece

    names = {"my_llm": lambda prompt: iter(PIECES), "my_async_llm": my_async_llm}
    names["prompt"] = "How do rainbows come about?"
    yield names
    (folder / "monitor.json").unlink()


def test_the_pages_show_the_monitor(names, capsys):
    assert len(BLOCKS) == 5
    service, many, stream, generation, gate = BLOCKS
    exec(service, names)
    assert "".join(names["answer"]("How do rainbows come about?")) == "".join(PIECES)
    names["monitor"].settings = settings_of(unsafe=1e-9)
    assert "".join(names["answer"]("How do rainbows come about?")) == "\n[stopped]"

    sent = []

    async def send(user, text):
        sent.append((user, text))

    names["monitor"].settings = settings_of()
    exec(many, names)
    asyncio.run(names["serve"]({"a": "one", "b": "two"}, send))
    for user in "ab":
        assert "".join(text for who, text in sent if who == user) == "".join(PIECES)
    names["monitor"].settings = settings_of(unsafe=1e-9)
    sent.clear()
    asyncio.run(names["serve"]({"a": "one"}, send))
    assert sent == [("a", "[stopped]")]

    names["monitor"].settings = settings_of()
    exec(stream, names)
    assert names["verdict"].verified == len("Light is refracted in droplets.")
    assert capsys.readouterr().out.count("safe") == 4

    torch.manual_seed(0)
    scm = load_dual_task(names["monitor"].tokenizer.name_or_path)
    names["model"] = Qwen2ForCausalLM(scm.config).eval()
    names["tokenizer"] = names["monitor"].tokenizer
    exec(generation, names)
    assert capsys.readouterr().out.strip().endswith("safe")

    leave_moderator(names["monitor"], Path("runs/mlpm-scm"))
    exec(gate, names)
    assert 0 <= float(capsys.readouterr().out) <= 1


def leave_moderator(monitor, folder):
    """Leaves what run-mlpm.sh makes of eight prompts."""
    folder.mkdir(parents=True)
    reader, number = MonitorReader(monitor), np.arange(8)
    states = reader.read([reader.encode(f"prompt {one}") for one in number])
    about = About(
        source=reader.about(), classes=["benign", "harmful"], counts=[], prototype="gda",
        combine="l1", c=1.0, intercept=0.0, target_false_alarm=0.0, threshold=None,
    )  # fmt: skip
    Moderator.fit(about, Rows(states, number % 2, number % 2, number >= 4)).save(folder, False)

"""What the tests of the LLM annotator share."""

import time
from collections.abc import Callable

import pytest

from tests.annotation.chat_server import ChatServer


@pytest.fixture()
def server(monkeypatch):
    """A stub endpoint; no proxy comes between, and no key of the developer's is at hand."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "STUB_KEY"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer() as running:
        yield running


@pytest.fixture()
def make(tmp_path, server):
    """Makes annotators that ask the stub and share one cache."""
    from annotation.annotators.llm import LlmConfig
    from annotation.chat import LLMAnnotator

    settings = {
        "annotator_model": "stub",
        "label_cache": str(tmp_path / "answers.sqlite"),
        "llm_url": server.url,
        "llm_key_env": "STUB_KEY",
        "llm_concurrency": 4,
        "llm_retries": 1,
        "llm_timeout": 10.0,
        "llm_answers": 2,
    }
    return lambda **changed: LLMAnnotator(LlmConfig("in", "out", **{**settings, **changed}))


def wait_for(condition: Callable[[], object], seconds: float = 5) -> None:
    """Waits until something is so, and fails where it never is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)

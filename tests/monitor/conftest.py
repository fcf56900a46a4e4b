"""A monitor of the tiny model, and what its streams are watched with."""

import asyncio
import gc
import threading

import pytest

from tests.conftest import settings_of


@pytest.fixture()
def monitor(monitors):
    _, monitor = monitors("tiny")
    monitor.settings = settings_of()
    return monitor


class Gate:
    """Holds the model's passes back until it is opened."""

    def __init__(self, monitor, monkeypatch):
        self._begun, self._opened = threading.Event(), threading.Event()
        self._score = monitor.scorer.score
        self.close = lambda: monkeypatch.setattr(monitor.scorer, "score", self._held)
        self.open = self._opened.set

    def _held(self, chunks):
        self._begun.set()
        assert self._opened.wait(30)
        return self._score(chunks)

    async def begun(self):
        """Waits until a pass is held back."""
        while not self._begun.is_set():
            await asyncio.sleep(0.01)


@pytest.fixture()
def gate(monitor, monkeypatch) -> Gate:
    return Gate(monitor, monkeypatch)


@pytest.fixture()
def no_collector():
    """What nobody refers to must go without a search for cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()

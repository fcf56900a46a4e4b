"""A peek tells the verdict of a response that ends here, and leaves no trace."""

import asyncio
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.batcher import Batcher
from monitor.rules import DelayK
from monitor.stream import Stream, StreamClosed, StreamingContentMonitor
from tests.conftest import settings_of
from tests.monitor.test_monitor_stream import PROMPT, TEXT
from tests.monitor.test_monitor_text import pieces_of, texts

FACTS = ("tokens", "harmful", "level", "stopped", "reason", "stop_token", "stop_character")


@lru_cache
def monitor_of(folder: Path, reading: str) -> StreamingContentMonitor:
    """Loads a checkpoint with a reading."""
    chosen = replace(settings_of(), reading=reading)
    return StreamingContentMonitor.from_pretrained(folder, settings=chosen)


@pytest.mark.parametrize("reading", ["plain", "folded"])
@pytest.mark.parametrize("kind", ["text", "ids"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=texts.filter(str.strip), seed=st.integers(0, 99), longest=st.sampled_from([1, 3, 8, 40]),
    theta=st.sampled_from([0.61234, 1.0]), k=st.integers(1, 5),
)  # fmt: skip
def test_a_peek_is_the_verdict_of_what_there_is_and_leaves_no_trace(
    monitors, reading, kind, text, seed, longest, theta, k
):
    folder, _ = monitors("tiny")
    monitor = monitor_of(folder, reading)
    monitor.settings = replace(settings_of(DelayK(k), theta), reading=reading)
    text = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
    known = "".join if kind == "text" else lambda parts: [one for part in parts for one in part]
    pieces = pieces_of(text, seed, longest)
    if kind == "ids":
        ids = monitor.tokenizer.backend_tokenizer.encode(text).ids
        pieces = [ids[at : at + longest] for at in range(0, len(ids), longest)]
    feed = Stream.feed if kind == "text" else Stream.feed_ids
    fed, scores = [], []
    with monitor.open(PROMPT) as plain, monitor.open(PROMPT) as peeked:
        for piece in pieces:
            fed.append(piece)
            verdict, expected = feed(peeked, piece), feed(plain, piece)
            assert np.allclose(verdict.scores, expected.scores, atol=1e-4)
            scores += verdict.scores.tolist()
            ended = peeked.peek()
            with monitor.open(PROMPT) as fresh:
                first = feed(fresh, known(fed))
                last = first if first.stopped else fresh.close()
            whole = [*first.scores] if first.stopped else [*first.scores, *last.scores]
            close = any(abs(score - theta) < 1e-4 for score in whole)
            if close:  # the decision hangs on rounding
                return
            assert np.allclose([*scores, *ended.scores], whole, atol=1e-4)
            assert [getattr(ended, n) for n in FACTS] == [getattr(last, n) for n in FACTS]
            assert ended.verified == last.verified
            if ended.stopped:  # for good
                assert feed(peeked, piece).stopped and peeked.close().stopped
                return
        verdict, expected = peeked.close(), plain.close()
        assert np.allclose(verdict.scores, expected.scores, atol=1e-4)
        assert [getattr(verdict, n) for n in FACTS] == [getattr(expected, n) for n in FACTS]


def test_a_peek_before_any_text_or_after_the_end(monitor):
    with monitor.open(PROMPT) as stream:
        assert stream.peek().tokens == 0 and stream.feed(TEXT).tokens > 0
        stream.close()
        assert not stream.peek().stopped and stream.closed


def test_a_model_that_fails_in_a_peek_stops_the_stream(monitor, monkeypatch):
    stream = monitor.open(PROMPT)
    stream.feed("some")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(monitor.scorer, "score", lambda chunks: 1 / 0)
        stream.peek()
    assert stream.feed(" more words").reason == "error"


def test_a_peek_that_is_interrupted_ends_the_stream(monitor, monkeypatch):
    stream = monitor.open(PROMPT)
    stream.feed("中".encode()[:2])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(monitor), "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stream.peek()
    with pytest.raises(StreamClosed):
        stream.feed("中".encode()[2:])


def test_a_peek_that_is_cancelled_ends_the_stream(monitor, gate):
    """An end that is none may be at work."""

    async def run():
        async with Batcher(monitor, 2) as batcher:
            stream = await batcher.open("Say it.")
            await stream.feed("some words and one")
            gate.close()
            peeking = asyncio.create_task(stream.peek())
            await gate.begun()
            peeking.cancel()
            await asyncio.sleep(0)
            gate.open()
            await asyncio.wait([peeking])
            with pytest.raises(StreamClosed):
                await stream.feed(" more")

    asyncio.run(asyncio.wait_for(run(), 60))

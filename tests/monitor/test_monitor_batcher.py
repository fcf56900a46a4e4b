"""Streams that are stepped together are judged as each would be alone."""

import asyncio
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor import stream as stream_module
from monitor.batcher import Batcher
from monitor.rules import DelayK
from monitor.stream import Stream, StreamClosed
from tests.conftest import NEVER, settings_of
from tests.monitor.test_monitor_stream import TEXT, follow
from tests.monitor.test_monitor_text import BYTE_LEVEL, pieces_of, texts


async def follow_one(batcher: Batcher, prompt: str, pieces, wait: random.Random, peeks=False):
    """Feeds pieces with pauses; returns all scores and the last verdict."""
    scores = []
    async with await batcher.open(prompt) as stream:
        for piece in pieces:
            scores += (await stream.feed(piece)).scores.tolist()
            if peeks:
                await stream.peek()
            for _ in range(wait.randint(0, 3)):
                await asyncio.sleep(0)
        verdict = await stream.close()
    return np.array([*scores, *verdict.scores]), verdict


def follow_many(
    monitor, prompts, responses, longest: int, seed: int = 0, max_streams: int = 3, peeks=False
):
    async def run():
        async with Batcher(monitor, max_streams) as batcher:
            return await asyncio.gather(
                *(
                    follow_one(
                        batcher, prompt, pieces_of(text, seed, longest), random.Random(seed), peeks
                    )
                    for prompt, text in zip(prompts, responses, strict=True)
                )
            )

    return asyncio.run(asyncio.wait_for(run(), 120))


def same_decision(one, other) -> bool:
    places = ("stopped", "stop_token", "stop_character", "tokens", "level", "verified", "harmful")
    return all(getattr(one, name) == getattr(other, name) for name in places)


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    responses=st.lists(texts, min_size=1, max_size=6), seed=st.integers(0, 99),
    longest=st.sampled_from([2, 8, 300]),
)  # fmt: skip
def test_together_as_alone(monitors, name, responses, seed, longest):
    _, monitor = monitors(name)
    responses = ["".join(c for c in text if not "\ud800" <= c <= "\udfff") for text in responses]
    prompts = ["prompt " * (index * 40) for index in range(len(responses))]
    for rule, threshold in ((NEVER, 1e9), (DelayK(3), 0.61234)):
        monitor.settings = settings_of(rule, threshold)
        together = follow_many(monitor, prompts, responses, longest, seed)
        for prompt, text, (scores, verdict) in zip(prompts, responses, together, strict=True):
            alone, _, lone = follow(monitor, [text], prompt)
            if len(alone) == len(scores) or np.abs(alone - threshold).min() > 1e-4:
                assert np.allclose(scores, alone, atol=1e-4)
                assert same_decision(verdict, lone)


def test_peeks_of_many_leave_no_trace(monitors, monkeypatch):
    _, monitor = monitors("tiny")
    monitor.settings = settings_of()
    monkeypatch.setattr(stream_module, "CHUNK", 3)  # a peek takes several passes
    responses = [TEXT * count for count in (1, 2, 0, 3)]
    plain = follow_many(monitor, ["p " * 90] * 4, responses, 40)
    peeked = follow_many(monitor, ["p " * 90] * 4, responses, 40, peeks=True)
    for (scores, verdict), (others, other) in zip(plain, peeked, strict=True):
        assert np.allclose(scores, others, atol=1e-4) and same_decision(verdict, other)


def test_long_streams_share_a_pass_with_short_ones(monitors, monkeypatch):
    """Budget and chunks force many passes, whatever arrives at once."""
    _, monitor = monitors("tiny")
    monitor.settings = settings_of()
    monkeypatch.setattr(stream_module, "CHUNK", 7)
    monkeypatch.setattr(stream_module, "TOKEN_BUDGET", 16)
    responses = [TEXT * count for count in (1, 4, 2, 0, 3)]
    together = follow_many(monitor, ["p" * 90] * 5, responses, 1000, max_streams=5)
    for text, (scores, verdict) in zip(responses, together, strict=True):
        alone, _, lone = follow(monitor, [text], "p" * 90)
        assert np.allclose(scores, alone, atol=1e-4) and same_decision(verdict, lone)


def run_with(monitor, body, max_streams: int = 2, **limits):
    async def run():
        async with Batcher(monitor, max_streams, **limits) as batcher:
            return await body(batcher)

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_open_waits_for_a_place(monitor):
    async def body(batcher):
        first, second = await batcher.open("a"), await batcher.open("b")
        third = asyncio.create_task(batcher.open("c"))
        await asyncio.sleep(0.05)
        assert not third.done()
        await first.close()
        assert (await (await third).feed("some words ")).tokens > 0
        second.leave()
        await (await batcher.open("d")).close()

    run_with(monitor, body)


def test_a_stream_may_leave_while_it_is_at_work(monitor, gate):
    async def body(batcher):
        stays, goes = await batcher.open("a"), await batcher.open("b")
        gate.close()
        tasks = [asyncio.create_task(one.feed("some words " * 50)) for one in (stays, goes)]
        await gate.begun()
        tasks[1].cancel()
        goes.leave()
        await asyncio.sleep(0.01)
        assert goes.stream.cache.nbytes > 0  # the pass still writes to it
        gate.open()
        assert (await tasks[0]).tokens > 0
        assert goes.stream.cache.nbytes == 0
        with pytest.raises(StreamClosed):
            await goes.feed("more")
        assert (await goes.close()).stopped is False
        return await stays.close()

    alone = follow(monitor, ["some words " * 50], "a")[2]
    assert same_decision(run_with(monitor, body), alone)


def test_a_cancelled_feed_leaves_nothing_unjudged(monitor, gate):
    async def body(batcher):
        stream = await batcher.open("a")
        gate.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.feed(TEXT), 0.05)
        again = asyncio.create_task(stream.feed(""))
        await asyncio.sleep(0.05)
        assert not again.done()
        gate.open()
        return await again, await stream.close()

    monitor.settings = settings_of(DelayK(1), 1e-6)
    for verdict in run_with(monitor, body):
        assert (verdict.stopped, verdict.stop_token, verdict.verified) == (True, 0, 0)


def test_a_stream_that_leaves_while_it_waits_is_not_computed(monitor, gate):
    async def body(batcher):
        works, waits = await batcher.open("a"), await batcher.open("b")
        gate.close()
        first = asyncio.create_task(works.feed(TEXT))
        await gate.begun()
        second = asyncio.create_task(waits.feed(TEXT))
        await asyncio.sleep(0.01)
        waits.leave()
        with pytest.raises(StreamClosed):
            await second
        gate.open()
        assert (await first).tokens > 0
        verdict = await waits.close()
        assert (verdict.tokens, verdict.verified, waits.stream.cache.nbytes) == (0, 0, 0)

    run_with(monitor, body)


def test_a_batcher_may_be_entered_again_and_ends_what_waits_for_a_place(monitor):
    batcher = Batcher(monitor, 1)

    async def run():
        async with batcher:
            with pytest.raises(StreamClosed, match="already"):
                await batcher.__aenter__()
            stream = await batcher.open("a")
            queued = asyncio.create_task(batcher.open("b"))
            assert (await stream.feed("some words ")).tokens
        with pytest.raises(StreamClosed):
            await queued
        assert stream.stream.closed and stream.stream.cache.nbytes == 0
        async with batcher:
            stream.leave()  # gives no second place away
            now = await batcher.open("c")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(batcher.open("d"), 0.05)
            await now.close()
            await (await batcher.open("d")).close()

    for _ in range(2):
        asyncio.run(asyncio.wait_for(run(), 60))


def test_a_failing_pass_reaches_those_in_it_and_no_others(monitor, monkeypatch):
    score = monitor.scorer.score

    def fail_once(chunks):
        monkeypatch.setattr(monitor.scorer, "score", score)
        raise RuntimeError("out of memory")

    async def body(batcher):
        first, second = await batcher.open("a"), await batcher.open("b")
        monkeypatch.setattr(monitor.scorer, "score", fail_once)
        with pytest.raises(RuntimeError, match="out of memory"):
            await first.feed("some words ")
        assert (await first.close()).reason == "error"
        assert not (await second.feed("some words ")).stopped
        await second.close()

    run_with(monitor, body)


def test_a_step_that_never_began_is_heard_by_all(monitor, monkeypatch):
    async def body(batcher):
        streams = [await batcher.open("a"), await batcher.open("b")]

        def fail(streams):
            raise RuntimeError("nothing works")

        monkeypatch.setattr(monitor, "step", fail, raising=False)
        feeds = [stream.feed("some words ") for stream in streams]
        results = await asyncio.gather(*feeds, return_exceptions=True)
        assert [str(result) for result in results] == ["nothing works"] * 2

    run_with(monitor, body)


def test_leaving_the_batcher_ends_what_waits(monitor):
    async def run():
        async with Batcher(monitor, 2) as batcher:
            stream = await batcher.open("a")
            task = asyncio.create_task(stream.feed("some words " * 50))
            await asyncio.sleep(0)
        with pytest.raises(StreamClosed):
            await task
        with pytest.raises(StreamClosed):
            await stream.feed("more words ")

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_waiting_stream_is_a_key():
    assert Stream.__hash__ is object.__hash__ and Stream.__eq__ is object.__eq__

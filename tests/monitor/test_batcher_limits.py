"""What a batcher does when places are short, and how it ends."""

import asyncio
import threading
from contextlib import suppress

import pytest

from monitor.batcher import Batcher, NoPlace
from monitor.stream import StreamClosed
from tests.monitor.test_monitor_batcher import run_with
from tests.monitor.test_monitor_stream import TEXT
from utils.files import InputError


@pytest.mark.parametrize(
    "limit, value",
    [("max_streams", 0), ("max_queued", -1), ("open_timeout", -1), ("idle_timeout", float("nan"))],
)
def test_limits_that_are_none_are_refused(monitor, limit, value):
    with pytest.raises(InputError, match=limit):
        Batcher(monitor, **{limit: value})


def test_a_stream_that_nobody_refers_to_gives_its_place_back(monitor, monkeypatch, no_collector):
    score = monitor.scorer.score

    async def body(batcher):
        for _ in range(4):
            await batcher.open("a")
        stream = await batcher.open("a")
        monkeypatch.setattr(monitor.scorer, "score", None)
        with suppress(TypeError):  # `pytest.raises` keeps what it heard
            await stream.feed("some words ")
        assert stream.stream.failed
        monkeypatch.setattr(monitor.scorer, "score", score)
        del stream
        await (await batcher.open("a")).close()

    run_with(monitor, body, max_streams=1, open_timeout=1)


def test_a_stream_may_be_dropped_in_another_thread(monitor):
    async def body(batcher):
        streams = [await batcher.open("a")]
        await asyncio.to_thread(streams.clear)
        await (await batcher.open("b")).close()

    run_with(monitor, body, max_streams=1)


def test_nobody_waits_for_a_place_without_end(monitor):
    async def body(batcher):
        stream = await batcher.open("a")
        queued = asyncio.create_task(batcher.open("b"))
        await asyncio.sleep(0)
        with pytest.raises(NoPlace, match="1 wait for one of 1 places already"):
            await batcher.open("c")
        with pytest.raises(NoPlace, match="none of 1 places is free after 0.1 s"):
            await queued
        await stream.close()
        await (await batcher.open("d")).close()

    run_with(monitor, body, max_streams=1, max_queued=1, open_timeout=0.1)


def test_a_stream_that_is_not_fed_loses_its_place(monitor):
    async def body(batcher):
        idle, busy = await batcher.open("a"), await batcher.open("b")
        for _ in range(10):  # feeds that settle nothing count, too
            await busy.feed(" ")
            await asyncio.sleep(0.12)
        with pytest.raises(StreamClosed, match="idle_timeout"):
            await idle.feed("words")
        with pytest.raises(StreamClosed):
            await idle.close()
        await (await batcher.open("c")).close()
        assert not (await busy.close()).stopped

    run_with(monitor, body, idle_timeout=1.0)


@pytest.mark.parametrize("error", [StopIteration, asyncio.CancelledError, SystemExit])
def test_no_error_of_the_model_ends_the_runner(monitor, monkeypatch, error):
    score = monitor.scorer.score

    def fail(chunks):
        raise error("broken")

    async def body(batcher):
        first, second = await batcher.open("a"), await batcher.open("b")
        monkeypatch.setattr(monitor.scorer, "score", fail)
        with pytest.raises(RuntimeError, match="the model raised .*broken"):
            await asyncio.wait_for(first.feed("some words "), 5)
        monkeypatch.setattr(monitor.scorer, "score", score)
        assert (await second.feed("some words ")).tokens

    run_with(monitor, body)


def test_whoever_waits_hears_that_the_runner_is_gone(monitor, gate):
    batcher = Batcher(monitor, 2)

    async def run():
        before = asyncio.all_tasks()
        async with batcher:
            others = asyncio.all_tasks() - before
            streams = [await batcher.open("a"), await batcher.open("b")]
            queued = asyncio.create_task(batcher.open("c"))
            gate.close()
            feeds = [asyncio.create_task(stream.feed(TEXT)) for stream in streams]
            await gate.begun()
            for _ in range(2):  # as a server that shuts down does, and again on leaving the block
                for task in others:
                    task.cancel()
                await asyncio.sleep(0.01)
            assert streams[0].stream.cache.nbytes > 0  # the pass still writes to it
            gate.open()
            waiting = asyncio.gather(*feeds, queued, return_exceptions=True)
            results = await asyncio.wait_for(waiting, 5)
            assert [type(result) for result in results] == [StreamClosed] * 3
            assert streams[0].stream.cache.nbytes == 0
            with pytest.raises(StreamClosed):
                await batcher.open("d")
        async with batcher:
            await (await batcher.open("e")).close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_group_of_tasks_hears_that_the_batcher_has_ended(monitor, gate):
    async def run():
        async with asyncio.TaskGroup() as group:
            async with Batcher(monitor) as batcher:
                stream = await batcher.open("a")
                gate.close()
                group.create_task(stream.feed(TEXT))
                await gate.begun()
                gate.open()

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(asyncio.wait_for(run(), 60))
    assert raised.group_contains(StreamClosed)


def test_another_event_loop_is_refused(monitor):
    async def body(batcher):
        stream = await batcher.open("a")
        for call in (batcher.open, stream.feed):
            with pytest.raises(StreamClosed, match="this event loop"):
                await asyncio.to_thread(asyncio.run, asyncio.wait_for(call("some words "), 5))
        assert (await stream.feed("some words ")).tokens

    run_with(monitor, body)


def test_a_busy_application_does_not_hold_the_batcher_back(monitor):
    async def body(batcher):
        stop, loop = threading.Event(), asyncio.get_running_loop()
        pool = [loop.run_in_executor(None, stop.wait, 30) for _ in range(64)]
        try:
            stream = await asyncio.wait_for(batcher.open("a"), 5)
            assert (await asyncio.wait_for(stream.feed("some words "), 5)).tokens
        finally:
            stop.set()
            await asyncio.gather(*pool)

    run_with(monitor, body)

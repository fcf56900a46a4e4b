"""What an asynchronous guard gives back, whoever goes away."""

import asyncio
import weakref
from contextlib import suppress

import pytest

from monitor.batcher import Batcher
from monitor.hold_back import guard_async
from monitor.rules import DelayK
from monitor.stream import StreamClosed
from tests.conftest import settings_of
from tests.monitor.test_monitor_batcher import run_with
from tests.monitor.test_monitor_stream import TEXT
from tests.monitor.test_monitor_text import pieces_of
from utils.files import InputError

PIECES = ["some words "] * 9


def test_an_asynchronous_guard(monitor):
    closed = []

    async def source(pieces, fails: bool = False):
        try:
            for piece in pieces:
                yield piece
            if fails:
                raise ConnectionError("the model went away")
        finally:
            closed.append(True)

    async def body(batcher):
        guarded = guard_async(batcher, "a", source(pieces_of(TEXT, 1, 6)))
        assert "".join([text async for text in guarded]) == TEXT
        assert (guarded.report.withheld, guarded.report.released) == ("", len(TEXT))
        assert guarded.report.complete
        guarded = guard_async(batcher, "a", source(pieces_of(TEXT, 1, 6), fails=True))
        with pytest.raises(ConnectionError):
            async for _ in guarded:
                pass
        assert not guarded.report.complete and not guarded.report.stopped
        async with guard_async(batcher, "a", source([TEXT, TEXT])) as guarded:
            async for _ in guarded:
                break  # the consumer goes away
        monitor.settings = settings_of(DelayK(3), 0.6)
        guarded = guard_async(batcher, "a", source(pieces_of(TEXT, 1, 6)))
        shown = "".join([text async for text in guarded])
        assert guarded.report.stopped and shown == TEXT[: guarded.report.verdict.stop_character]
        streams = [await batcher.open("still two places") for _ in range(2)]
        for stream in streams:
            stream.leave()

    run_with(monitor, body)
    assert len(closed) == 4


class Connection:
    """Pieces behind a connection: each has an end of its own."""

    def __init__(self, pieces, closes: str = "aclose"):
        self.closed, self._pieces = [], pieces
        setattr(self, closes, self._end)

    async def __aiter__(self):
        try:
            for piece in self._pieces:
                yield piece
        finally:
            self.closed.append("iterator")

    async def _end(self):
        await asyncio.sleep(0)
        self.closed.append("connection")


async def settle():
    """Lets the event loop end what was dropped."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("closes", ["aclose", "close"])
def test_iterator_and_source_are_closed_in_this_order_and_once(monitor, no_collector, closes):
    async def stop(guarded):
        async for _ in guarded:
            pass
        await guarded.aclose()

    async def leave(guarded):
        await anext(guarded)
        await guarded.aclose()
        await guarded.aclose()

    async def drop(guarded):
        await anext(guarded)

    async def fail(guarded):
        with pytest.raises(InputError):
            await stop(guarded)

    async def body(batcher):
        for end, pieces in ((stop, PIECES), (leave, PIECES), (drop, PIECES), (fail, [7])):
            connection = Connection(pieces, closes)
            await end(guard_async(batcher, "a", connection))
            await settle()
            assert connection.closed == ["iterator", "connection"]
        unread = Connection(PIECES, closes)
        guard_async(batcher, "a", unread)
        await settle()
        assert unread.closed == ["connection"]  # its iterator never began

    run_with(monitor, body)


def test_clients_that_leave_take_no_places_along(monitor, no_collector):
    """As an ASGI server does: the handler's task is cancelled, and nobody closes its stream."""

    async def body(batcher):
        async def send(text):
            sending.set()
            await asyncio.Event().wait()

        async def respond(connection):
            stream = guard_async(batcher, "p", connection)
            async for text in stream:
                await send(text)

        for _ in range(6):
            sending, connection = asyncio.Event(), Connection(PIECES)
            task = asyncio.create_task(respond(connection))
            await sending.wait()
            task.cancel()
            await asyncio.wait([task])
            del task
            await settle()
            assert connection.closed == ["iterator", "connection"]
        for _ in range(2):
            (await asyncio.wait_for(batcher.open("p"), 5)).leave()

    run_with(monitor, body)


def test_none_is_skipped_and_other_pieces_are_refused_by_their_type(monitor):
    async def body(batcher):
        guarded = guard_async(batcher, "a", Connection([None, "Hi ", None, b"there"]))
        assert "".join([text async for text in guarded]) == "Hi there"
        with pytest.raises(InputError, match="type dict:"):
            await anext(guard_async(batcher, "a", Connection([{}])))

    run_with(monitor, body)


@pytest.mark.parametrize("error", [RuntimeError, StopIteration, asyncio.CancelledError])
def test_a_failing_model_stops_the_stream(monitor, monkeypatch, error):
    score, passes = monitor.scorer.score, []

    def fail(chunks):
        passes.append(chunks)
        if len(passes) > calls:
            raise error("out of memory")
        return score(chunks)

    async def body(batcher):
        guarded, shown = guard_async(batcher, "a", Connection(PIECES)), []
        with pytest.raises(RuntimeError, match="out of memory"):
            async for text in guarded:
                shown.append(text)
        report = guarded.report
        assert (report.stopped, report.verdict.reason) == (True, "error")
        assert "".join([*shown, report.withheld]) == "some words " * calls

    monkeypatch.setattr(monitor.scorer, "score", fail)
    # at the prompt, at the first piece, at the second
    for calls in range(3):  # noqa: B007
        passes.clear()
        run_with(monitor, body)


def test_a_stalled_consumer_loses_its_place(monitor):
    async def body(batcher):
        connection = Connection(PIECES)
        guarded = guard_async(batcher, "a", connection)
        await anext(guarded)
        await (await batcher.open("b")).close()  # waits for it
        with pytest.raises(StreamClosed, match="idle_timeout"):
            await anext(guarded)
        assert connection.closed == ["iterator", "connection"]
        last = guard_async(batcher, "a", Connection(PIECES[:1]))
        await anext(last)
        await asyncio.sleep(0.8)
        with pytest.raises(StreamClosed):  # its end is not judged, so it is not complete
            await anext(last)
        assert not last.report.complete

    run_with(monitor, body, max_streams=1, idle_timeout=0.4)


def test_where_no_event_loop_runs_there_is_no_guard(monitor):
    with pytest.raises(RuntimeError, match="no running event loop"):
        guard_async(Batcher(monitor), "a", Connection(PIECES))


def test_an_error_of_the_model_leaves_no_cycles(monitor, monkeypatch, no_collector):
    async def source():
        for piece in PIECES:
            yield piece

    async def body(batcher):
        guarded = guard_async(batcher, "a", source())
        await anext(guarded)
        monkeypatch.setattr(monitor.scorer, "score", None)
        with suppress(TypeError):  # `pytest.raises` keeps what it heard
            await anext(guarded)
        assert guarded.report.stopped
        held = weakref.ref(guarded._held)
        del guarded
        for _ in range(100):  # the thread lets go of its work a little later
            if held() is None:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("a cycle holds it")

    run_with(monitor, body)

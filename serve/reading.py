"""Reads an upstream's events while others are judged."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

from anyio import CancelScope

from serve.operations import log_failure
from serve.upstream import UpstreamError

LINGER = 5.0  # seconds to wait for usage once all choices have ended
READ_AHEAD = 64  # events of the upstream that may wait to be judged


class Closing(Exception):
    """The service is closing."""


@asynccontextmanager
async def read_ahead(events: AsyncGenerator[object], closing: asyncio.Event):
    """Reads events while others are judged: yields an iterator over all that wait, in order.

    What arrived meanwhile is one batch, so that it is judged in one step. Where reading fails, or
    the service closes, the iterator raises that once the batch before it has been taken.
    """
    queue: asyncio.Queue = asyncio.Queue()
    room = asyncio.Semaphore(READ_AHEAD)

    async def read() -> None:
        try:
            async for event in events:
                await room.acquire()
                queue.put_nowait(event)
            queue.put_nowait(StopAsyncIteration())
        except UpstreamError as error:
            queue.put_nowait(error)
        except Exception as error:
            log_failure("upstream_failed", error)
            queue.put_nowait(UpstreamError(502, "upstream_failed", "reading the upstream failed"))

    async def watch() -> None:
        await closing.wait()
        queue.put_nowait(Closing())

    async def batches() -> AsyncIterator[list[object]]:
        while True:
            waiting = [await queue.get()]
            while not queue.empty():
                waiting.append(queue.get_nowait())
            ends = [one for one in waiting if isinstance(one, Exception)]
            batch = [one for one in waiting if not isinstance(one, Exception)]
            for _ in batch:
                room.release()
            if batch:
                yield batch
            if ends:
                if isinstance(ends[0], StopAsyncIteration):
                    return
                raise ends[0]

    tasks = [asyncio.create_task(read()), asyncio.create_task(watch())]
    try:
        yield batches()
    finally:
        with CancelScope(shield=True):  # a client that left cancels each wait anew
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await events.aclose()


async def until_over(
    batches: AsyncIterator[list[object]], over: Callable[[], bool]
) -> AsyncIterator[list[object]]:
    """Passes batches on, after the answer is over for `LINGER` seconds: faults spoil it no more."""
    now, until = asyncio.get_running_loop().time, None
    while True:
        if until is None and over():
            until = now() + LINGER
        if until is not None and now() >= until:
            return
        try:
            async with asyncio.timeout_at(until):
                batch = await anext(batches)
        except StopAsyncIteration:
            return
        except (TimeoutError, UpstreamError, Closing):
            if until is not None:
                return
            raise
        yield batch

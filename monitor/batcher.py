"""Many live streams on one model, for asyncio: each step computes what all of them have waiting.

async with Batcher(monitor, max_streams=32) as batcher:
    stream = await batcher.open(prompt)
    verdict = await stream.feed(piece)
"""

import asyncio
from collections.abc import Callable, Sequence

from monitor.stream import Stream, StreamClosed, StreamingContentMonitor, Verdict
from utils.files import InputError


class Batcher:
    """Steps all live streams of a monitor together. Streams join and leave at any time.

    Memory is bounded: at most `max_streams` streams, each with keys and values of at most the
    monitor's context. Back-pressure: `open` waits for a place, `feed` for its verdict. Leaving the
    `async with` block ends all streams; it may be entered again, in another event loop, too.

    Args:
        monitor: The monitor.
        max_streams: Streams that may be open at a time.

    Raises:
        InputError: `max_streams` is below 1.
    """

    def __init__(self, monitor: StreamingContentMonitor, max_streams: int = 32) -> None:
        if max_streams < 1:
            raise InputError(f"max_streams: {max_streams} is below 1")
        self._monitor, self._max_streams = monitor, max_streams
        self._loop: asyncio.Task | None = None

    async def __aenter__(self) -> "Batcher":
        if self._loop is not None:
            raise StreamClosed("the batcher is running already")
        self._places, self._queued = asyncio.Semaphore(self._max_streams), 0
        self._streams: set[Stream] = set()
        self._waiting: dict[Stream, asyncio.Future] = {}  # first come, first served
        self._working: set[Stream] = set()
        self._left: set[Stream] = set()  # closed while they were at work
        self._wake, self._step_over = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_) -> None:
        loop, self._loop = self._loop, None
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        for stream in self._streams:
            stream.free()
        self._streams.clear()
        for _ in range(self._queued):  # whoever waits for a place finds the batcher closed
            self._places.release()

    async def open(self, prompt: str) -> "BatchedStream":
        """Starts to follow a response once there is a place, and reads the prompt.

        Raises:
            StreamClosed: The batcher is not running, or ends before there is a place.
        """
        self._refuse_stopped()
        places = self._places
        self._queued += 1
        try:
            await places.acquire()
        finally:
            self._queued -= 1
        try:
            self._refuse_stopped()
            stream = BatchedStream(self, await asyncio.to_thread(Stream, self._monitor, prompt))
        except BaseException:
            places.release()
            raise
        self._streams.add(stream.stream)
        try:
            await self.compute(stream.stream)
        except BaseException:
            stream.leave()
            raise
        return stream

    async def idle(self, stream: Stream) -> None:
        """Waits until no step is at work on a stream; a cancelled call may have left it there."""
        while stream in self._working:
            await self._step_over.wait()

    async def compute(self, stream: Stream) -> None:
        """Waits until all that a stream has waiting is computed.

        Raises:
            StreamClosed: The batcher is not running, or the stream was closed meanwhile.
            Exception: The model's.
        """
        self._refuse_stopped()
        if not stream.waiting:
            return
        future = self._waiting[stream] = asyncio.get_running_loop().create_future()
        self._wake.set()
        try:
            await future
        finally:
            if self._waiting.get(stream) is future:
                del self._waiting[stream]

    def leave(self, stream: Stream) -> None:
        """Frees a stream and gives its place away, after the step that it may take part in."""
        if future := self._waiting.pop(stream, None):
            if not future.done():
                future.set_exception(StreamClosed("the stream was closed"))
        if stream in self._working:
            self._left.add(stream)
        else:
            self._free(stream)

    def _free(self, stream: Stream) -> None:
        stream.free()
        if stream in self._streams:  # not of an earlier time that the batcher was entered
            self._streams.remove(stream)
            self._places.release()

    def _refuse_stopped(self) -> None:
        if self._loop is None:
            raise StreamClosed("the batcher is not running; use it in an `async with` block")

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while streams := [one for one, it in self._waiting.items() if not it.done()]:
                    await self._step(streams)
        finally:
            for future in self._waiting.values():
                future.cancel()

    async def _step(self, streams: list[Stream]) -> None:
        self._working = set(streams)
        self._step_over.clear()
        step = asyncio.create_task(asyncio.to_thread(self._monitor.step, streams))
        served, error = [], None
        try:
            served = await asyncio.shield(step)
        except asyncio.CancelledError:
            await asyncio.gather(step, return_exceptions=True)  # a thread cannot be cancelled
            raise
        except Exception as failure:  # the model's; whoever waits for it gets it
            error = failure
        finally:
            left, self._working, self._left = self._left, set(), set()
            for stream in left:
                self._free(stream)
            self._step_over.set()
        for stream in served:  # whoever has more to come lets the others go first
            if stream in self._waiting:
                self._waiting[stream] = self._waiting.pop(stream)
        hit = [stream for stream in streams if stream.failed] or streams if error else []
        for stream, future in self._waiting.items():
            if future.done():
                continue
            if stream in hit:
                future.set_exception(error)
            elif not stream.waiting:
                future.set_result(None)


class BatchedStream:
    """One response among many. Made by `Batcher.open`; used like `monitor.stream.Stream`."""

    def __init__(self, batcher: Batcher, stream: Stream) -> None:
        self._batcher, self.stream = batcher, stream
        self._one_at_a_time = asyncio.Lock()
        self._gone = False

    async def __aenter__(self) -> "BatchedStream":
        return self

    async def __aexit__(self, *_) -> None:
        self.leave()

    async def feed(self, piece: str | bytes) -> Verdict:
        """See `Stream.feed`."""
        return await self._after(lambda: self.stream.receive(piece))

    async def feed_ids(self, ids: Sequence[int]) -> Verdict:
        """See `Stream.feed_ids`."""
        return await self._after(lambda: self.stream.receive_ids(ids))

    async def close(self) -> Verdict:
        """See `Stream.close`."""
        if self._gone:
            return self.stream.verdict()
        try:
            return await self._after(self.stream.receive_end)
        finally:
            self.leave()

    def leave(self) -> None:
        """Ends the stream without judging what is left of it, and gives its place away."""
        if not self._gone:
            self._gone = True
            self._batcher.leave(self.stream)

    async def _after(self, receive: Callable[[], None]) -> Verdict:
        async with self._one_at_a_time:
            await self._batcher.idle(self.stream)
            if self._gone:
                raise StreamClosed("the stream is closed")
            receive()
            await self._batcher.compute(self.stream)
            return self.stream.verdict()

"""Many live streams on one model, for asyncio: each step computes what all of them have waiting.

async with Batcher(monitor, max_streams=32) as batcher:
    stream = await batcher.open(prompt)
    verdict = await stream.feed(piece)
"""

import asyncio

from monitor.stream import Stream, StreamClosed, StreamingContentMonitor, Verdict
from utils.files import InputError


class Batcher:
    """Steps all live streams of a monitor together. Streams join and leave at any time.

    Memory is bounded: at most `max_streams` streams, each with keys and values of at most the
    monitor's context. Back-pressure: `open` waits for a place, `feed` for its verdict.

    Args:
        monitor: The monitor.
        max_streams: Streams that may be open at a time.

    Raises:
        InputError: `max_streams` is below 1.
    """

    def __init__(self, monitor: StreamingContentMonitor, max_streams: int = 32) -> None:
        if max_streams < 1:
            raise InputError(f"max_streams: {max_streams} is below 1")
        self._monitor = monitor
        self._places = asyncio.Semaphore(max_streams)
        self._waiting: dict[Stream, asyncio.Future] = {}  # first come, first served
        self._working: set[Stream] = set()
        self._left: set[Stream] = set()  # closed while they were at work
        self._wake = asyncio.Event()
        self._loop: asyncio.Task | None = None

    async def __aenter__(self) -> "Batcher":
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_) -> None:
        loop, self._loop = self._loop, None
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        for future in self._waiting.values():
            future.cancel()

    async def open(self, prompt: str) -> "BatchedStream":
        """Starts to follow a response once there is a place, and reads the prompt."""
        await self._places.acquire()
        try:
            stream = BatchedStream(self, Stream(self._monitor, prompt))
        except BaseException:
            self._places.release()
            raise
        try:
            await stream.computed()
        except BaseException:
            stream.leave()
            raise
        return stream

    async def compute(self, stream: Stream) -> None:
        """Waits until all that a stream has waiting is computed.

        Raises:
            StreamClosed: The batcher is not running.
            Exception: The model's.
        """
        if self._loop is None:
            raise StreamClosed("the batcher is not running; use it in an `async with` block")
        if not stream.waiting:
            return
        self._waiting[stream] = asyncio.get_running_loop().create_future()
        self._wake.set()
        try:
            await self._waiting[stream]
        finally:
            self._waiting.pop(stream, None)

    def leave(self, stream: Stream) -> None:
        """Frees a stream, at once or after the step it takes part in, and gives its place away."""
        if stream in self._working:
            self._left.add(stream)
        else:
            stream.free()
        self._places.release()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._step(list(self._waiting))

    async def _step(self, streams: list[Stream]) -> None:
        self._working = set(streams)
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
            for stream in self._left:
                stream.free()
            self._working, self._left = set(), set()
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
        self._batcher, self._stream = batcher, stream
        self._one_at_a_time = asyncio.Lock()
        self._gone = False

    async def __aenter__(self) -> "BatchedStream":
        return self

    async def __aexit__(self, *_) -> None:
        self.leave()

    async def feed(self, piece: str | bytes) -> Verdict:
        """See `Stream.feed`."""
        async with self._one_at_a_time:
            self._refuse_gone()
            self._stream.receive(piece)
            return await self._verdict()

    async def feed_ids(self, ids: list[int]) -> Verdict:
        """See `Stream.feed_ids`."""
        async with self._one_at_a_time:
            self._refuse_gone()
            self._stream.receive_ids(ids)
            return await self._verdict()

    async def close(self) -> Verdict:
        """See `Stream.close`."""
        async with self._one_at_a_time:
            if self._gone:
                return self._stream.verdict()
            try:
                self._stream.receive_end()
                return await self._verdict()
            finally:
                self.leave()

    def leave(self) -> None:
        """Ends the stream without judging what is left of it, and gives its place away."""
        if not self._gone:
            self._gone = True
            self._batcher.leave(self._stream)

    async def computed(self) -> None:
        """Waits until all that was received is computed."""
        await self._batcher.compute(self._stream)

    async def _verdict(self) -> Verdict:
        await self.computed()
        return self._stream.verdict()

    def _refuse_gone(self) -> None:
        if self._gone:
            raise StreamClosed("the stream is closed")

"""Many live streams on one model, for asyncio: each step computes what all of them have waiting.

async with Batcher(monitor, max_streams=32) as batcher:
    stream = await batcher.open(prompt)
    verdict = await stream.feed(piece)
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager

from monitor.stream import Stream, StreamClosed, StreamingContentMonitor
from monitor.verdicts import Verdict
from utils.files import InputError


class NoPlace(RuntimeError):
    """A batcher is full, and nobody has left within its limits."""


class Batcher:
    """Steps all live streams of a monitor together. Streams join and leave at any time.

    Memory is bounded: at most `max_streams` streams, each with keys and values of at most the
    monitor's context. Back-pressure: `open` waits for a place, `feed` for its verdict. Leaving the
    `async with` block ends all streams; it may be entered again, even in another event loop. Steps
    run in a thread, which a fork leaves behind: a child process must load its own monitor.

    Args:
        max_streams: Streams that may be open at a time.
        max_queued: Calls of `open` that may wait for a place at a time.
        open_timeout: Seconds that each of them waits.
        idle_timeout: Seconds without `feed` after which a stream is closed and its place given
            away, since its consumer or its source has stalled.
        on_step: Called after each step with the streams that it served and the seconds it took, in
            the thread of the steps.

    Raises:
        InputError: A limit is too low.
    """

    def __init__(
        self,
        monitor: StreamingContentMonitor,
        max_streams: int = 32,
        *,
        max_queued: int = 1024,
        open_timeout: float = 60.0,
        idle_timeout: float = 600.0,
        on_step: Callable[[int, float], object] | None = None,
    ) -> None:
        for name, value, least in (
            ("max_streams", max_streams, 1),
            ("max_queued", max_queued, 0),
            ("open_timeout", open_timeout, 0),
            ("idle_timeout", idle_timeout, 0),
        ):
            if not value >= least:
                raise InputError(f"{name}: {value} is below {least}")
        self._monitor, self._max_streams = monitor, max_streams
        self._max_queued, self._queued = max_queued, 0
        self._open_timeout, self._idle_timeout = open_timeout, idle_timeout
        self._on_step = on_step
        self._loop: asyncio.AbstractEventLoop | None = None  # where it runs

    async def __aenter__(self) -> "Batcher":
        if self._loop is not None:
            raise StreamClosed("the batcher is running already")
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "batcher")  # the application's may all be busy
        self._places = asyncio.Semaphore(self._max_streams)
        self._streams: dict[Stream, asyncio.TimerHandle] = {}  # with their idle timers
        self._waiting: dict[Stream, asyncio.Future] = {}  # first come, first served
        self._working: set[Stream] = set()
        self._left: set[Stream] = set()  # closed while they were at work
        self._wake, self._step_over = asyncio.Event(), asyncio.Event()
        self._runner = asyncio.create_task(self._run())
        self._runner.add_done_callback(self._end)
        return self

    async def __aexit__(self, *_) -> None:
        self._runner.cancel()
        await asyncio.wait([self._runner])

    def _end(self, runner: asyncio.Task) -> None:
        """Ends all that is open or waits, however the runner ended."""
        self._loop = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(StreamClosed("the batcher has ended"))
        for stream in [*self._streams]:
            self._free(stream)
        self._thread.shutdown(wait=False)
        for _ in range(self._queued):  # whoever waits for a place finds the batcher closed
            self._places.release()

    async def open(self, prompt: str) -> "BatchedStream":
        """Starts to follow a response once there is a place, and reads the prompt.

        Raises:
            NoPlace: There is none within `open_timeout`, or `max_queued` wait for one already.
            StreamClosed: The batcher is not running in this event loop, or ends meanwhile.
        """
        stream = await self.admit(prompt)
        try:
            await self.compute(stream.stream, lambda: None)
        except BaseException:
            stream.leave()
            raise
        return stream

    async def admit(self, prompt: str) -> "BatchedStream":
        """The same as `open`, but the prompt is read with the first piece."""
        self._refuse_stopped()
        places = self._places
        if places.locked() and self._queued >= self._max_queued:
            raise NoPlace(f"{self._queued} wait for one of {self._max_streams} places already")
        self._queued += 1
        try:
            async with asyncio.timeout(self._open_timeout):
                await places.acquire()
        except TimeoutError:
            raise NoPlace(
                f"none of {self._max_streams} places is free after {self._open_timeout:g} s"
            ) from None
        finally:
            self._queued -= 1
        try:
            self._refuse_stopped(places)
            new = self._loop.run_in_executor(self._thread, Stream, self._monitor, prompt)
            stream = BatchedStream(self, await new)
            self._refuse_stopped(places)
        except BaseException:
            places.release()
            raise
        self._rest(stream.stream)
        return stream

    def _rest(self, stream: Stream) -> None:
        """Leaves a stream alone until its next piece, but not for good."""
        self._streams[stream] = self._loop.call_later(self._idle_timeout, self.leave, stream)

    async def compute(self, stream: Stream, receive: Callable[[], None]) -> Verdict:
        """Lets a stream receive something and waits until all of it is computed.

        Raises:
            StreamClosed: The batcher is not running, or the stream is or was closed meanwhile.
            Exception: The model's.
        """
        self._refuse_stopped()
        while stream in self._working:  # a cancelled call may have left it there
            await self._step_over.wait()
        if stream not in self._streams:
            raise StreamClosed("the stream is closed, or was not fed for the idle_timeout")
        receive()
        self._streams[stream].cancel()
        future = self._loop.create_future()
        try:
            if stream.waiting:
                self._waiting[stream] = future
                self._wake.set()
                await future
        finally:
            if self._waiting.get(stream) is future:
                del self._waiting[stream]
            del future  # its error holds this frame
            if stream in self._streams:
                self._rest(stream)
        return stream.verdict()

    def leave(self, stream: Stream) -> None:
        """Frees a stream and gives its place away, after the step that it may take part in."""
        future = self._waiting.pop(stream, None)
        if future is not None and not future.done():
            future.set_exception(StreamClosed("the stream was closed"))
        if stream in self._working:
            self._left.add(stream)
        else:
            self._free(stream)

    def drop(self, stream: Stream) -> None:
        """Calls `leave` from any thread, for a stream that nobody refers to."""
        if (loop := self._loop) is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.leave, stream)

    def _free(self, stream: Stream) -> None:
        stream.free()
        if timer := self._streams.pop(stream, None):  # none of an earlier time it was entered
            timer.cancel()
            self._places.release()

    def _refuse_stopped(self, places: asyncio.Semaphore | None = None) -> None:
        if self._loop is not asyncio.get_running_loop() or places not in (None, self._places):
            raise StreamClosed(
                "the batcher is not running in this event loop; use it in an `async with` block"
            )

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while streams := [one for one, it in self._waiting.items() if not it.done()]:
                await self._step(streams)

    async def _step(self, streams: list[Stream]) -> None:
        self._working = set(streams)
        self._step_over.clear()
        step = self._loop.run_in_executor(self._thread, self._attempt, streams)
        try:
            await _outlast(step)
        finally:
            left, self._working, self._left = self._left, set(), set()
            for stream in left:
                self._free(stream)
            self._step_over.set()
        error = step.exception()  # not raised here: it would hold this frame, which holds it
        served = [] if error else step.result()
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

    def _attempt(self, streams: list[Stream]) -> list[Stream]:
        """Makes a step; raises only what a future takes, and what ends no task as if cancelled."""
        began = time.perf_counter()
        try:
            served = self._monitor.step(streams)
            if self._on_step is not None:
                self._on_step(len(served), time.perf_counter() - began)
            return served
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                raise
            raise RuntimeError(f"the model raised {error!r}") from error


async def _outlast(work: asyncio.Future) -> None:
    """Waits for a thread's work to end, which cannot be cancelled, and passes cancelling on."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


class BatchedStream(AbstractAsyncContextManager["BatchedStream"]):
    """One response among many. Made by `Batcher.open`; used like `monitor.stream.Stream`."""

    def __init__(self, batcher: Batcher, stream: Stream) -> None:
        self._batcher, self.stream = batcher, stream
        self._one_at_a_time = asyncio.Lock()
        self._gone = False

    def __del__(self) -> None:
        if not self._gone:
            self._batcher.drop(self.stream)

    async def __aexit__(self, *_) -> None:
        self.leave()

    @property
    def closed(self) -> bool:
        """Whether it has ended, for instance since it was not fed for the `idle_timeout`."""
        return self._gone or self.stream.closed

    async def feed(self, piece: str | bytes) -> Verdict:
        """See `Stream.feed`."""
        return await self._after(lambda: self.stream.receive(piece))

    async def feed_ids(self, ids: Sequence[int]) -> Verdict:
        """See `Stream.feed_ids`."""
        return await self._after(lambda: self.stream.receive_ids(ids))

    async def peek(self) -> Verdict:
        """See `Stream.peek`."""
        async with self._one_at_a_time:
            try:
                verdict = await self._batcher.compute(self.stream, self.stream.receive_pause)
            except BaseException:
                self.leave()  # an end that is none may be at work
                raise
            self.stream.go_on()
            return verdict

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
        self._gone = True
        self._batcher.leave(self.stream)

    async def _after(self, receive: Callable[[], None]) -> Verdict:
        async with self._one_at_a_time:
            return await self._batcher.compute(self.stream, receive)

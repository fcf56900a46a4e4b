"""Hold-back: passes on a stream's text only as far as it was judged, and ends it when it must stop.

guarded = guard(monitor, prompt, llm_pieces)
for text in guarded:
    send(text)
if guarded.report.stopped:
    send("…")
"""

import inspect
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from monitor.batcher import Batcher
from monitor.stream import StreamingContentMonitor, Verdict
from utils.files import InputError

# where a sentence or a line has ended, as far as one can tell by the next character
SENTENCE_END = re.compile(r"[\n。！？]|[.!?…](?=\s)")

HoldBack = int | Literal["sentence"]


@dataclass(frozen=True)
class Report:
    """What became of a guarded stream.

    Attributes:
        verdict: The last verdict; None if there was none before the stream broke off.
        released: Characters passed on.
        withheld: Text that was received and not passed on. It may be harmful.
        complete: The response came to its own end and was judged to it; false where it was stopped
            or broke off.
    """

    verdict: Verdict | None
    released: int
    withheld: str
    complete: bool

    @property
    def stopped(self) -> bool:
        """Whether the monitor stopped it."""
        return self.verdict is not None and self.verdict.stopped


class HeldText:
    """Text that waits until it is verified.

    Args:
        hold_back: How many verified tokens are held back beyond the unverified ones, or
            "sentence": all after the last sentence or line that is verified to its end.

    Raises:
        InputError: It is neither.
    """

    def __init__(self, hold_back: HoldBack) -> None:
        if hold_back != "sentence" and (not isinstance(hold_back, int) or hold_back < 0):
            raise InputError(
                f"hold_back: {hold_back!r} is neither a number of tokens nor 'sentence'"
            )
        self._hold_back, self._text = hold_back, ""
        self._starts: list[int] = []  # of the last tokens, as many as are held back
        self.released, self._complete = 0, False
        self.verdict: Verdict | None = None

    def take(self, verdict: Verdict, final: bool = False) -> str:
        """Takes a verdict and returns what may be passed on now.

        Args:
            verdict: The next one of the stream.
            final: The response is complete, nothing need wait for what follows.
        """
        self.verdict, self._complete = verdict, final and not verdict.stopped
        self._text += verdict.text
        limit = verdict.verified - self.released
        if verdict.beyond_context:  # lets pass what cannot be judged
            limit = len(self._text)
        elif verdict.stopped or not final:
            limit = min(limit, self._bound(verdict) - self.released)
        ready, self._text = self._text[: max(limit, 0)], self._text[max(limit, 0) :]
        self.released += len(ready)
        return ready

    def _bound(self, verdict: Verdict) -> int:
        """The character up to which holding back allows release."""
        if self._hold_back == "sentence":
            verified = self._text[: max(verdict.verified - self.released, 0)]
            ends = [match.end() for match in SENTENCE_END.finditer(verified)]
            return self.released + (ends[-1] if ends else 0)
        if not self._hold_back:
            return verdict.verified
        passed = verdict.starts[:-1] if verdict.reason == "harmful" else verdict.starts
        self._starts = [*self._starts, *passed][-self._hold_back :]
        return self._starts[0] if len(self._starts) == self._hold_back else 0

    @property
    def report(self) -> Report:
        """What became of it so far."""
        return Report(self.verdict, self.released, self._text, self._complete)


class GuardedStream(Iterator[str]):
    """See `guard`."""

    def __init__(
        self,
        monitor: StreamingContentMonitor,
        prompt: str,
        pieces: Iterable[str | bytes],
        hold_back: HoldBack,
    ) -> None:
        self._held, self._pieces = HeldText(hold_back), iter(pieces)
        self._steps = self._run(monitor, prompt)

    def __next__(self) -> str:
        return next(self._steps)

    def __enter__(self) -> "GuardedStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream and its source; for a consumer that goes away."""
        self._steps.close()
        self._close_source()  # a generator that never ran closes nothing

    @property
    def report(self) -> Report:
        """What became of it so far."""
        return self._held.report

    def _run(self, monitor: StreamingContentMonitor, prompt: str) -> Iterator[str]:
        try:
            with monitor.open(prompt) as stream:
                for piece in self._pieces:
                    verdict = stream.feed(piece)
                    if text := self._held.take(verdict):
                        yield text
                    if verdict.stopped:
                        return
                if text := self._held.take(stream.close(), final=True):
                    yield text
        finally:
            self._close_source()

    def _close_source(self) -> None:
        if hasattr(self._pieces, "close"):
            self._pieces.close()


def guard(
    monitor: StreamingContentMonitor,
    prompt: str,
    pieces: Iterable[str | bytes],
    hold_back: HoldBack = 0,
) -> GuardedStream:
    """Passes on a response only as far as it was judged, and ends its source on a stop.

    Args:
        monitor: The monitor.
        prompt: What the response answers.
        pieces: The response, cut anywhere; closed (if it can be) when the stream ends in any way.
        hold_back: Verified tokens that wait nevertheless, since a rule like delay-k takes several
            tokens to fire; or "sentence": only whole sentences and lines are passed on.

    Returns:
        An iterator over text, whose `report` tells what was withheld and why. What the source
        raises passes through it. Close it, or use it in a `with` block, if you may leave it early;
        not from another thread while it is at work.

    Raises:
        InputError: `hold_back` is no such thing.
    """
    return GuardedStream(monitor, prompt, pieces, hold_back)


class GuardedAsyncStream(AsyncIterator[str]):
    """See `guard_async`."""

    def __init__(
        self,
        batcher: Batcher,
        prompt: str,
        pieces: AsyncIterable[str | bytes],
        hold_back: HoldBack,
    ) -> None:
        self._held, self._source, self._pieces = HeldText(hold_back), pieces, aiter(pieces)
        self._steps = self._run(batcher, prompt)

    async def __anext__(self) -> str:
        return await anext(self._steps)

    async def __aenter__(self) -> "GuardedAsyncStream":
        return self

    async def __aexit__(self, *_) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream and its source; for a consumer that goes away."""
        await self._steps.aclose()
        await self._close_source()

    @property
    def report(self) -> Report:
        """What became of it so far."""
        return self._held.report

    async def _run(self, batcher: Batcher, prompt: str) -> AsyncIterator[str]:
        try:
            async with await batcher.open(prompt) as stream:
                async for piece in self._pieces:
                    verdict = await stream.feed(piece)
                    if text := self._held.take(verdict):
                        yield text
                    if verdict.stopped:
                        return
                if text := self._held.take(await stream.close(), final=True):
                    yield text
        finally:
            await self._close_source()

    async def _close_source(self) -> None:
        for source in (self._pieces, self._source):  # a generator's own end, a connection's
            end = getattr(source, "aclose", None) or getattr(source, "close", None)
            if end is not None and inspect.isawaitable(ended := end()):
                await ended


def guard_async(
    batcher: Batcher,
    prompt: str,
    pieces: AsyncIterable[str | bytes],
    hold_back: HoldBack = 0,
) -> GuardedAsyncStream:
    """The same as `guard` for asyncio, beside all other streams of a batcher.

    Args:
        batcher: Of the monitor; the event loop never waits for the model.
        prompt: As in `guard`.
        pieces: An asynchronous iterable, closed by its `aclose` or `close`.
        hold_back: As in `guard`.

    Returns:
        An asynchronous iterator over text like that of `guard`. It belongs to the task that reads
        it: to end it from another one, cancel that task.
    """
    return GuardedAsyncStream(batcher, prompt, pieces, hold_back)

"""Hold-back: passes on a stream's text only as far as it was judged, and ends it when it must stop.

guarded = guard(monitor, prompt, llm_pieces)
for text in guarded:
    send(text)
if guarded.report.stopped:
    send("…")
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, replace

import regex

from monitor.batcher import Batcher
from monitor.options import HoldBack
from monitor.stream import Stream, StreamingContentMonitor
from monitor.verdicts import Verdict
from utils.files import InputError

LONGEST_SENTENCE = 512  # characters; of a longer one whole words are passed on
# Matches where a line or a sentence has ended, whatever follows. A mark that also stands in
# numbers, addresses and code ends a sentence only before white space; other scripts' marks always.
SENTENCE_END = regex.compile(
    r"""(?V1xs) \R
    | (?<![\p{STerm}…]) [\p{STerm}…]++ CLOSING*+ (?=\s)
    | [\p{Sentence_Break=STerm}--[!?]] [\p{STerm}…CLOSING]*+ (?=.)
    """.replace("CLOSING", r"""[\p{Pe}\p{Pf}\p{Pi}"'*_`]""")
)
LAST_SPACE = regex.compile(r"(?s).*\s")


@dataclass(frozen=True)
class Report:
    """What became of a guarded stream.

    Attributes:
        verdict: The last verdict; None if there was none before the stream broke off.
        released: Characters passed on.
        withheld: Text that was received and not passed on. It may be harmful. It lacks a piece that
            was being judged when its task was cancelled.
        complete: The response came to its own end and was judged up to it.
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

    Raises:
        InputError: `hold_back` is not as `guard` describes it.
    """

    def __init__(self, hold_back: HoldBack) -> None:
        if hold_back != "sentence" and (not isinstance(hold_back, int) or hold_back < 0):
            raise InputError(
                f"hold_back: {hold_back!r} is neither a number of tokens nor 'sentence'"
            )
        self._hold_back = hold_back
        # of the last tokens, as many as are held back
        self._starts: deque[int] = deque(maxlen=0 if hold_back == "sentence" else hold_back)
        self.report = Report(None, released=0, withheld="", complete=False)

    def take(self, verdict: Verdict, final: bool = False) -> str:
        """Takes a verdict, the last one of a response if `final`; returns what may be passed on."""
        text, released = self.report.withheld + verdict.text, self.report.released
        verified = text[: max(verdict.verified - released, 0)]
        complete = final and not verdict.stopped
        if verdict.beyond_context:  # what cannot be judged may pass
            ready = text
        elif complete:
            ready = verified
        elif self._hold_back == "sentence":
            ready = verified[: whole_sentences(verified)]
        else:
            ready = verified[: max(self._bound(verdict) - released, 0)]
        self.report = Report(verdict, released + len(ready), text[len(ready) :], complete)
        return ready

    def _bound(self, verdict: Verdict) -> int:
        """Returns the character before which the last `hold_back` tokens begin."""
        if not self._hold_back:
            return verdict.verified
        passed = verdict.starts[:-1] if verdict.reason == "harmful" else verdict.starts
        self._starts.extend(passed)
        return self._starts[0] if len(self._starts) == self._hold_back else 0

    def break_off(self, verdict: Verdict) -> None:
        """Takes the verdict at which a stream broke off; nothing more is passed on."""
        withheld = self.report.withheld + verdict.text
        self.report = replace(self.report, verdict=verdict, withheld=withheld)


def whole_sentences(text: str) -> int:
    """Returns how many characters of a text are whole sentences and lines, whatever follows.

    Of a sentence beyond `LONGEST_SENTENCE` characters, whole words count; without white space, all
    of its characters do.
    """
    end = 0
    while True:
        window = text[end : end + LONGEST_SENTENCE + 1]  # the next one says whether it ended
        match = SENTENCE_END.search(window)
        if match is None and len(window) > LONGEST_SENTENCE:
            match = LAST_SPACE.match(window, endpos=LONGEST_SENTENCE)
            end += match.end() if match else LONGEST_SENTENCE
        elif match:
            end += match.end()
        else:
            return end


def _holds_text(piece: object) -> bool:
    """Tells text from None, which LLM servers send between pieces; refuses other types."""
    if piece is not None and not isinstance(piece, str | bytes | bytearray):
        raise InputError(f"a piece of type {type(piece).__name__}: a response is str or bytes")
    return piece is not None


class _Guarded:
    """What both kinds of guarded streams hold: steps that yield text, and what became of it."""

    def __init__(self, steps: Iterator[str] | AsyncIterator[str], held: HeldText) -> None:
        self._steps, self._held = steps, held

    @property
    def report(self) -> Report:
        """What became of the response so far."""
        return self._held.report


def _steps(
    held: HeldText,
    monitor: StreamingContentMonitor,
    prompt: str,
    pieces: Iterable[str | bytes | None],
) -> Iterator[str]:
    # no method of GuardedStream: its frame would keep that alive after its last user
    iterator = iter(pieces)
    with ExitStack() as ends:
        for owner in _owners(iterator, pieces):
            if hasattr(owner, "close"):
                ends.callback(owner.close)
        yield ""  # taken at once: only a generator that has begun ends its source
        with Stream(monitor, prompt) as stream:
            try:
                held.take(verdict := stream.feed(""))  # reads the prompt
                if verdict.stopped:
                    return
                for piece in iterator:
                    if _holds_text(piece):
                        verdict = stream.feed(piece)
                        if text := held.take(verdict):
                            yield text
                        if verdict.stopped:
                            return
                if text := held.take(stream.close(), final=True):
                    yield text
            except Exception:
                held.break_off(stream.verdict())
                raise


def _owners(iterator: object, pieces: object) -> list[object]:
    """Returns what may have to be closed, the last one first."""
    return [pieces] if iterator is pieces else [pieces, iterator]


class GuardedStream(_Guarded, Iterator[str]):
    """See `guard`."""

    def __next__(self) -> str:
        return next(self._steps)

    def __enter__(self) -> "GuardedStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the stream and its source, for a consumer that goes away."""
        self._steps.close()


def guard(
    monitor: StreamingContentMonitor,
    prompt: str,
    pieces: Iterable[str | bytes | None],
    hold_back: HoldBack = 0,
) -> GuardedStream:
    """Passes on a response only as far as it was judged, and ends its source on a stop.

    Args:
        prompt: What the response answers.
        pieces: The response, cut anywhere; None is skipped. However the stream ends, the iterator
            of `pieces` and then `pieces` itself are closed, if they have a `close`. A
            `TextIteratorStreamer` has none: its `generate` runs on unless you stop it.
        hold_back: Verified tokens that wait nevertheless, since a rule like delay-k takes several
            tokens to fire; or "sentence": only whole sentences and lines are passed on, and of one
            beyond 512 characters whole words.

    Returns:
        An iterator over text, whose `report` tells what was withheld and why. Errors of the source
        and the model pass through it. It ends once nobody refers to it; a `with` block or `close`
        ends it for certain, but not from another thread while it is at work.

    Raises:
        InputError: `hold_back` is neither; while it runs: a piece is neither str nor bytes.
    """
    held = HeldText(hold_back)
    steps = _steps(held, monitor, prompt, pieces)
    next(steps)
    return GuardedStream(steps, held)


async def _async_steps(
    held: HeldText, batcher: Batcher, prompt: str, pieces: AsyncIterable[str | bytes | None]
) -> AsyncIterator[str]:
    """The same as `_steps`."""
    iterator = aiter(pieces)
    async with AsyncExitStack() as ends:
        for owner in _owners(iterator, pieces):
            ends.push_async_callback(_end, owner)
        yield ""
        async with await batcher.admit(prompt) as stream:
            try:
                held.take(verdict := await stream.feed(""))
                if verdict.stopped:
                    return
                async for piece in iterator:
                    if _holds_text(piece):
                        verdict = await stream.feed(piece)
                        if text := held.take(verdict):
                            yield text
                        if verdict.stopped:
                            return
                if text := held.take(await stream.close(), final=True):
                    yield text
            except Exception:
                held.break_off(stream.stream.verdict())
                raise


async def _end(owner: object) -> None:
    end = getattr(owner, "aclose", None) or getattr(owner, "close", None)
    if end is not None and inspect.isawaitable(ended := end()):
        await ended


class GuardedAsyncStream(_Guarded, AsyncIterator[str]):
    """See `guard_async`."""

    async def __anext__(self) -> str:
        return await anext(self._steps)

    async def __aenter__(self) -> "GuardedAsyncStream":
        return self

    async def __aexit__(self, *_) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the stream and its source, for a consumer that goes away."""
        await self._steps.aclose()


def guard_async(
    batcher: Batcher,
    prompt: str,
    pieces: AsyncIterable[str | bytes | None],
    hold_back: HoldBack = 0,
) -> GuardedAsyncStream:
    """The same as `guard` for asyncio, beside all other streams of a batcher.

    The event loop never waits for the model. Pieces are closed by `aclose` or `close`. The iterator
    belongs to the task that reads it: to end it from another one, cancel that task.

    Raises:
        RuntimeError: No event loop is running, so nobody could end the stream.
        InputError: As in `guard`.
        NoPlace: While it runs: see `Batcher.open`.
    """
    asyncio.get_running_loop()  # it ends a generator that nobody refers to
    held = HeldText(hold_back)
    steps = _async_steps(held, batcher, prompt, pieces)
    with suppress(StopIteration):
        anext(steps).send(None)
    return GuardedAsyncStream(steps, held)

"""What all routes share: the batcher, its places, counters, and who asks."""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection

from monitor.batcher import BatchedStream, Batcher, NoPlace
from monitor.hold_back import HeldText
from monitor.options import HoldBack
from monitor.stream import StreamClosed, StreamingContentMonitor
from monitor.verdicts import Verdict
from serve.operations import Counts, log_failure
from serve.requests import Refused, shutting_down, unavailable

CANARY = "All is well."  # what the deep health check lets the monitor score


@dataclass
class Engine:
    """A running monitor for all routes.

    Attributes:
        monitor: The monitor.
        name: What clients call it.
        places: Streams that may be open at a time.
        hold_back: As in `monitor.hold_back.guard`.
        keys: Of clients; empty for none.
        idle_timeout: Seconds without text after which a stream is closed.
        make_room: Called with how many places are missing, to have some given back.
    """

    monitor: StreamingContentMonitor
    name: str
    places: int
    hold_back: HoldBack
    keys: tuple[str, ...] = ()
    idle_timeout: float = 600.0
    counts: Counts = field(default_factory=Counts)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    make_room: Callable[[int], None] = lambda missing: None

    def __post_init__(self) -> None:
        self.taken = 0
        self.counts.places.set(self.places)
        self.counts.open.set_function(lambda: self.taken)
        self.batcher = Batcher(
            self.monitor,
            self.places,
            max_queued=self.places,  # a place given back is free once its step is over
            idle_timeout=self.idle_timeout,
            on_step=self.counts.note_step,
        )

    def take_places(self, count: int) -> None:
        """Takes places; raises Refused, at once, without them or while the service closes."""
        if self.closing.is_set():
            raise shutting_down()
        if (missing := self.taken + count - self.places) > 0:
            self.make_room(missing)
        if self.taken + count > self.places:
            self.counts.refused.inc()
            raise unavailable("all places are taken")
        self.taken += count

    def give_places(self, count: int) -> None:
        """Gives places back."""
        self.taken -= count

    @contextmanager
    def taking(self, count: int) -> Iterator[None]:
        """Takes places for as long as the block lasts."""
        self.take_places(count)
        try:
            yield
        finally:
            self.give_places(count)

    async def open(self, prompt: str) -> BatchedStream:
        """Opens a stream on a place that was taken."""
        return await self.batcher.admit(prompt)

    @asynccontextmanager
    async def stream(self, prompt: str) -> AsyncIterator[BatchedStream]:
        """Opens a stream on a place of its own."""
        with self.taking(1):
            async with await self.open(prompt) as stream:
                yield stream

    async def judge(self, prompt: str, text: str) -> tuple[Verdict, int]:
        """Judges a text as a whole response.

        Returns:
            The verdict, and how many characters may be shown should the text go on.

        Raises:
            Refused: There is no place, or the monitor failed: then nothing may pass.
        """
        verdict, released = await self._judge(prompt, text)
        self.note_end(verdict)
        return verdict, released

    async def _judge(self, prompt: str, text: str) -> tuple[Verdict, int]:
        try:
            async with self.stream(prompt) as stream:
                held = HeldText(self.hold_back)
                verdict = await stream.feed(text)
                held.take(verdict)
                self.note(verdict)
                if not verdict.stopped:
                    verdict = await stream.close()
                    self.note(verdict)
                return verdict, held.report.released
        except Exception as error:
            raise self.refusal(error) from None

    def refusal(self, error: Exception) -> Refused:
        """Returns what answers a failure of the monitor or the batcher; nothing may pass then."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, NoPlace | StreamClosed):
            is_closing = self.closing.is_set()
            return shutting_down() if is_closing else unavailable("the stream has no place")
        self.counts.failures.labels("monitor").inc()
        log_failure("monitor_failed", error)
        return Refused(500, "the monitor failed", kind="server_error", code="monitor_failed")

    def nearness(self, verdict: Verdict) -> float:
        """Returns how near a response came to a stop, 0 to 1: its statistic over the threshold."""
        share = verdict.statistic / self.monitor.policy_after(verdict.prompt).stop_threshold
        return 1.0 if verdict.stopped else min(max(share, 0.0), 1.0)

    def note(self, verdict: Verdict) -> None:
        """Counts what a verdict brought."""
        self.counts.tokens.inc(len(verdict.scores))
        theta = self.monitor.settings.token_theta
        self.counts.harmful.inc(int((~(verdict.scores < theta)).sum()))

    def note_end(self, verdict: Verdict | None) -> None:
        """Counts how a stream ended."""
        if verdict is None:
            return
        if verdict.stopped:
            self.counts.stops.labels(verdict.level, verdict.reason).inc()
            if verdict.reason == "error":
                self.counts.failures.labels("monitor").inc()
        else:
            self.counts.ended.labels(verdict.level).inc()

    async def is_ready(self) -> bool:
        """Lets the monitor score a text; a full service counts as ready."""
        try:
            verdict, _ = await self._judge("", CANARY)
        except Refused as refused:
            return refused.status == 503 and self.taken >= self.places
        return verdict.tokens > 0

    def tenant(self, connection: HTTPConnection, key: str = "") -> str:
        """Returns who asks: a hash of the key, under which its sessions live.

        Args:
            connection: Its header names the key,
            key: unless that came another way.

        Raises:
            Refused: The service has keys, and this is none of them.
        """
        given = key or connection.headers.get("authorization", "")
        key = given[7:].strip() if given[:7].lower() == "bearer " else given
        if self.keys and not (key.isascii() and self.knows(key)):
            raise Refused(
                401, "the key is missing or wrong", code="invalid_api_key",
                kind="authentication_error",
            )  # fmt: skip
        content = key.encode(errors="surrogatepass")
        return hashlib.sha256(content).hexdigest()[:16] if key else ""

    def knows(self, key: str) -> bool:
        """Tells whether a key is one of the service's, in a time that does not tell which."""
        known = [hmac.compare_digest(key.encode(), one.encode()) for one in self.keys]
        return any(known)

    def about(self) -> dict[str, Any]:
        """Returns what the page shows of the service."""
        policy = self.monitor.settings.policy
        return {
            "model": self.name,
            "places": self.places,
            "hold_back": self.hold_back,
            "rule": policy.rule.name,
            "unsafe": policy.unsafe,
            "controversial": policy.controversial,
            "mode": policy.mode,
            "moderator": self.monitor.moderator is not None,
            "on_prompt": self.monitor.on_prompt,
            "flagged_unsafe": self.monitor.settings.flagged_unsafe,
            "token_theta": self.monitor.settings.token_theta,
        }

"""One response that grows: what a session knows of it, and what its caller is told."""

import asyncio
import time
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from monitor.batcher import BatchedStream
from monitor.hold_back import HeldText
from monitor.options import HoldBack
from monitor.rules import Level
from monitor.verdicts import LEVELS, Verdict
from serve.verdicts import rounded, why

ID_WEIGHT = 16  # characters that take as much memory as an id
KNOWN = ("tokens", "harmful", "verified", "release")


@dataclass
class Session:
    """A response that grows.

    Attributes:
        tenant: Whose it is.
        prompt: What it answers.
        hold_back: As in `monitor.hold_back.guard`.
        stream: Its stream; None while it has no place.
        held: Decides what of it may be shown; None while it has no stream.
        received: Fragments, joined: text, or token ids; None before the first, empty once over.
        have: Characters or ids received.
        digest: Of the text, once it has ended.
        verdict: The last one.
        peeked: The last one as if it ended there, of a session that is shown at once.
        known: Counts of the verdicts, and the characters that may be shown; none ever falls, though
            a session that is read again may settle less at first.
        level: The worst so far.
        told: Tokens whose scores the caller has.
        weight: What of the memory for all sessions it takes.
        touched, opened: When it was used last, and made.
        stopped: The monitor stopped it.
        final: Its caller ended it.
        failed: The monitor failed: nothing is known of what came.
        dropped: Nobody can reach it any more.
        turn: One fragment at a time.
    """

    tenant: str
    prompt: str
    hold_back: HoldBack
    stream: BatchedStream | None = None
    held: HeldText | None = None
    received: str | list[int] | None = None
    have: int = 0
    digest: bytes = b""
    verdict: Verdict | None = None
    peeked: Verdict | None = None
    known: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KNOWN, 0))
    level: Level = "safe"
    told: int = 0
    weight: int = 0
    touched: float = field(default_factory=time.monotonic)
    opened: float = field(default_factory=time.monotonic)
    stopped: bool = False
    final: bool = False
    failed: bool = False
    dropped: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def over(self) -> bool:
        """Nothing more is judged."""
        return self.stopped or self.final or self.failed

    def weigh(self) -> int:
        """Returns what of the memory for all sessions it takes, in characters."""
        return 0 if self.dropped else len(self.prompt) + weight_of(self.received or "")

    def state(self) -> dict[str, Any]:
        """Returns what a caller is told."""
        return {
            "have": self.have,
            "final": self.final,
            "level": self.level,
            "stopped": self.stopped,
            **why(self.verdict),
            **self.known,
        }

    def take(self, verdict: Verdict, final: bool) -> None:
        """Takes a verdict, the last one if `final`."""
        self.verdict, self.stopped = verdict, verdict.stopped
        self.level = max(self.level, verdict.level, key=LEVELS.index)
        self.held.take(verdict, final)
        values = (verdict.tokens, verdict.harmful, verdict.verified, self.held.report.released)
        for name, value in zip(KNOWN, values, strict=True):
            self.known[name] = max(self.known[name], value)


def weight_of(received: str | list[int]) -> int:
    """Returns how many characters take as much memory."""
    return len(received) * (1 if isinstance(received, str) else ID_WEIGHT)


def digest_of(text: str) -> bytes:
    """Returns what tells a text from others."""
    return sha256(text.encode(errors="surrogatepass")).digest()


def news(judged: list[Verdict], told: int) -> tuple[list[float | None], list[int]]:
    """Returns scores and starts of the tokens after the first `told`."""
    scores, starts = [], []
    for verdict in judged:
        known = max(told - (verdict.tokens - len(verdict.scores)), 0)
        scores += rounded(verdict.scores[known:])
        starts += verdict.starts[known:]
    return scores, starts

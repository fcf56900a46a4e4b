"""One choice of an answer under the monitor: parts of chunks in, judged parts out, in their order.

A channel (content, reasoning, a tool call's arguments) is a response of its own. Channels follow
one another, so the one that was written to is ended when another begins: its last word is judged
and passed on first, and a choice takes one place of the batcher at a time. Should a channel go on
later, it is read again from its start.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from monitor.batcher import BatchedStream
from monitor.hold_back import HeldText
from monitor.options import HoldBack
from monitor.rules import Level
from monitor.stream import LEVELS, Verdict
from serve.chunks import CONTENT, Channel, Kind, Part, as_delta, merge, name_of

OpenStream = Callable[[], Awaitable[BatchedStream]]
# in which entries lie behind one another: of a chat's logprobs, of a completion's
LOGPROBS: dict[Kind, tuple[str, ...]] = {
    "chat": ("content",),
    "text": ("tokens", "token_logprobs", "top_logprobs", "text_offset"),
}


@dataclass
class Judged:
    """What may be passed on of a choice: fields in their order, and how it ended.

    Attributes:
        fields: Parts of choices to send, one a chunk.
        scores: Channel, scores and starts of the tokens judged, and the characters verified and
            received, for clients that want to see them.
        verdicts: What was judged.
        finish_reason: Set once the choice is over.
    """

    fields: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class _Text:
    """A channel's text: what was received and passed on of it."""

    received: str = ""
    released: int = 0
    tokens: int = 0
    harmful: int = 0


class Logprobs:
    """Log probabilities that wait until all characters of their token are passed on.

    Entries whose tokens do not spell the text, such as those of bytes, are dropped from there on.
    """

    def __init__(self, kind: Kind) -> None:
        self._names, self._spelled, self._broken = LOGPROBS[kind], 0, False
        self._waiting: deque[tuple[int, tuple]] = deque()  # end of the token's text, entry

    def take(self, logprobs: dict[str, Any] | None, text: str) -> None:
        """Takes a chunk's entries, and the text that came with them, which is not empty."""
        columns = [(logprobs or {}).get(name) for name in self._names]
        columns = [one if isinstance(one, list) else [] for one in columns]
        count = len(columns[0])
        spelled = ""
        for place in range(count):
            entry = tuple(column[place] if len(column) == count else None for column in columns)
            token = entry[0].get("token") if isinstance(entry[0], dict) else entry[0]
            spelled += token if isinstance(token, str) else "\0"
            self._waiting.append((self._spelled + len(spelled), entry))
        self._spelled += len(text)
        self._broken |= spelled != text
        if self._broken:
            self._waiting.clear()

    def give(self, released: int) -> dict[str, Any] | None:
        """Returns the entries of tokens within the first `released` characters."""
        entries = []
        while self._waiting and self._waiting[0][0] <= released:
            entries.append(self._waiting.popleft()[1])
        if not entries:
            return None
        return dict(zip(self._names, map(list, zip(*entries, strict=True)), strict=True))


def _goes_on(channel: Channel, later: list[Part]) -> bool:
    """Tells whether the next part begins with more text of a channel and no more than that."""
    return bool(later) and not later[0].heads and [one for one, _ in later[0].texts] == [channel]


class GuardedChoice:
    """Follows one choice.

    Args:
        index: The choice's.
        kind: Of the endpoint.
        open_stream: Opens a stream of the batcher for the choice's prompt.
        hold_back: As in `monitor.hold_back.guard`.
        stop_text: What the client reads where the monitor stops the choice.
    """

    def __init__(
        self, index: int, kind: Kind, open_stream: OpenStream, hold_back: HoldBack, stop_text: str
    ) -> None:
        self.index, self._kind = index, kind
        self._open, self._hold_back, self._stop_text = open_stream, hold_back, stop_text
        self._texts: dict[Channel, _Text] = {}
        self._stream: BatchedStream | None = None
        self._channel: Channel | None = None
        self._held = HeldText(hold_back)
        self._repeated = 0  # characters of a channel read again that were passed on before
        self._logprobs = Logprobs(kind)
        self.plain: dict[str, Any] = {}  # for the next chunk
        self.verdict: Verdict | None = None  # the last one, on any channel
        self.level: Level = "safe"  # the worst so far
        self.begun, self.over = False, False

    async def take(self, parts: list[Part]) -> Judged:
        """Takes parts of the choice that came in this order; text in a row is judged at once."""
        judged, run, self.begun = Judged(), "", True
        for number, part in enumerate(parts):
            if self.over:
                break
            self._add_plain(part.plain)
            for at, head in part.heads:
                if at != (self._channel or ())[: len(at)]:
                    await self._end(judged)
                if self.over:
                    return judged
                merge(self.plain, as_delta(at, head))
                self._send(judged, "")
            for channel, text in part.texts:
                if channel == CONTENT[self._kind]:
                    self._logprobs.take(part.logprobs, text)
                run += text
                is_last = channel == part.texts[-1][0] and part.finish_reason is None
                if is_last and _goes_on(channel, parts[number + 1 :]):
                    continue
                await self._feed(judged, channel, run)
                run = ""
            if part.finish_reason is not None and not self.over:
                await self._end(judged)
                if not self.over:  # its last word may have stopped it
                    self._finish(judged, part.finish_reason)
        if any(self.plain.values()) and not self.over:
            self._send(judged, "")
        return judged

    def _add_plain(self, plain: dict[str, Any]) -> None:
        delta = self.plain.get("delta", {}) | plain.get("delta", {})
        self.plain |= plain | ({"delta": delta} if delta else {})

    async def _feed(self, judged: Judged, channel: Channel, text: str) -> None:
        if self.over:
            return
        if channel != self._channel:
            await self._end(judged)
            if self.over:
                return
            await self._begin(channel)
        known = self._texts[channel]
        known.received += text
        self._take(judged, await self._stream.feed(text), final=False)

    async def _begin(self, channel: Channel) -> None:
        self._stream, self._channel = await self._open(), channel
        self._held = HeldText(self._hold_back)
        known = self._texts.setdefault(channel, _Text())
        self._repeated = known.released
        if known.received:
            self._repeated -= len(self._held.take(await self._stream.feed(known.received)))

    async def _end(self, judged: Judged) -> None:
        """Judges the end of the channel that was written to last."""
        if self._stream is not None and not self.over:
            self._take(judged, await self._stream.close(), final=True)
            self._stream = None
            if not self.over:
                self._channel = None

    def _take(self, judged: Judged, verdict: Verdict, final: bool) -> None:
        self.verdict, known = verdict, self._texts[self._channel]
        self.level = max(self.level, verdict.level, key=LEVELS.index)
        text = self._held.take(verdict, final)
        skipped = min(self._repeated, len(text))
        text, self._repeated = text[skipped:], self._repeated - skipped
        known.released += len(text)
        known.tokens, known.harmful = verdict.tokens, verdict.harmful
        judged.verdicts.append(verdict)
        judged.scores.append(
            {
                "channel": name_of(self._channel),
                "scores": [round(float(score), 4) for score in verdict.scores],
                "starts": list(verdict.starts),
                "verified": verdict.verified,
                "received": len(known.received),
            }
        )
        if text:
            self._send(judged, text)
        if verdict.stopped:
            self._finish(judged, "content_filter")

    def _send(self, judged: Judged, text: str) -> None:
        """Adds a chunk: released text, and what else waits for one."""
        fields, self.plain = self.plain, {}
        if text:
            merge(fields, as_delta(self._channel, text))
            if self._channel == CONTENT[self._kind]:
                released = self._texts[self._channel].released
                if logprobs := self._logprobs.give(released):
                    fields["logprobs"] = logprobs
        judged.fields.append(fields)

    def _finish(self, judged: Judged, reason: str) -> None:
        if reason == "content_filter" and self.stopped and self._stop_text:
            judged.fields.append(as_delta(CONTENT[self._kind], self._stop_text))
        self.over = True
        judged.finish_reason = reason
        self.leave()

    @property
    def stopped(self) -> bool:
        """Whether the monitor stopped it."""
        return self.verdict is not None and self.verdict.stopped

    @property
    def withheld(self) -> int:
        """Characters that were received and not passed on."""
        return sum(len(one.received) - one.released for one in self._texts.values())

    @property
    def released(self) -> int:
        """Characters that were passed on."""
        return sum(one.released for one in self._texts.values())

    def details(self) -> dict[str, Any]:
        """Returns what is known of the choice, for the object `scm` of its last chunk."""
        verdict = self.verdict
        return {
            "index": self.index,
            "level": self.level,
            "stopped": self.stopped,
            "reason": verdict.reason if verdict else None,
            "channel": name_of(self._channel) if self.stopped else None,
            "stop_token": verdict.stop_token if verdict else None,
            "stop_character": verdict.stop_character if verdict else None,
            "channels": [
                {
                    "channel": name_of(channel),
                    "tokens": one.tokens,
                    "harmful": one.harmful,
                    "received": len(one.received),
                    "released": one.released,
                }
                for channel, one in self._texts.items()
            ],
        }

    def leave(self) -> None:
        """Gives the choice's place back; nothing more is judged."""
        if self._stream is not None:
            self._stream.leave()
            self._stream = None

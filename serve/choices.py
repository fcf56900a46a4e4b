"""One choice of an answer under the monitor: parts of chunks in, judged parts out, in their order.

A channel (content, reasoning, a tool call's arguments) is a response of its own. Channels follow
one another, so the one that was written to is ended when another begins: its last word is judged
and passed on first, and a choice takes one place of the batcher at a time. Should a channel go on
later, it is read again from its start, though not without end.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from monitor.batcher import BatchedStream
from monitor.hold_back import HeldText
from monitor.options import HoldBack
from monitor.rules import Level
from monitor.verdicts import LEVELS, Verdict
from serve.chunks import (
    CONTENT,
    BadChunk,
    Channel,
    Kind,
    Part,
    as_delta,
    is_number,
    merge,
    name_of,
    no_text,
)
from serve.verdicts import rounded, why

OpenStream = Callable[[], Awaitable[BatchedStream]]
REOPENINGS = 64  # how often channels of a choice may be gone on with


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

    An entry is made anew of its token, number and place. Alternatives to the token, which nobody
    judged, are left out. Entries whose tokens do not spell the text, such as those of bytes, are
    dropped from there on.
    """

    def __init__(self, kind: Kind) -> None:
        self._kind, self._spelled, self._broken = kind, 0, False
        self._waiting: deque[tuple[int, dict[str, Any]]] = deque()  # end of the token's text, entry

    def take(self, logprobs: dict[str, Any] | None, text: str) -> None:
        """Takes a chunk's entries, and the text that came with them, which is not empty."""
        spelled = ""
        for token, number, place in self._entries(logprobs or {}):
            spelled += token if isinstance(token, str) else "\0"
            number = number if is_number(number) else None
            if self._kind == "chat":
                entry = {"token": token, "logprob": number, "top_logprobs": []}
                entry["bytes"] = [*str(token).encode(errors="replace")]
                entry = {"content": [entry]}
            else:
                values = (token, number, None, place if is_number(place) else None)
                names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
                entry = {name: [value] for name, value in zip(names, values, strict=True)}
            self._waiting.append((self._spelled + len(spelled), entry))
        self._spelled += len(text)
        self._broken |= spelled != text
        if self._broken:
            self._waiting.clear()

    def _entries(self, logprobs: dict[str, Any]) -> Iterator[tuple[object, object, object]]:
        if self._kind == "chat":
            content = logprobs.get("content")
            for one in content if isinstance(content, list) else []:
                entry = one if isinstance(one, dict) else {}
                yield entry.get("token"), entry.get("logprob"), None
        else:
            columns = [logprobs.get(n) for n in ("tokens", "token_logprobs", "text_offset")]
            tokens, *others = [one if isinstance(one, list) else [] for one in columns]
            others = [one if len(one) == len(tokens) else [None] * len(tokens) for one in others]
            yield from zip(tokens, *others, strict=True)

    def give(self, released: int) -> dict[str, Any] | None:
        """Returns the entries of tokens within the first `released` characters."""
        given: dict[str, Any] = {}
        while self._waiting and self._waiting[0][0] <= released:
            merge(given, self._waiting.popleft()[1])
        return given or None


def _goes_on(channel: Channel, later: list[Part]) -> bool:
    """Tells whether the next part begins with more text of a channel and no more than that."""
    if not later or len(later[0].added) != 1:
        return False
    place, added = later[0].added[0]
    return place == channel and isinstance(added, str)


def _unsaid(said: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a tool call's head was not said before, and notes it: a call has one name."""
    fresh = {}
    for name, value in head.items():
        if isinstance(value, dict):
            if inner := _unsaid(said.setdefault(name, {}), value):
                fresh[name] = inner
        elif name not in said:
            said[name] = fresh[name] = value
    return fresh


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
        self._heads: dict[Channel, dict[str, Any]] = {}  # of tool calls, as far as they were sent
        self._reopened = 0
        self._stream: BatchedStream | None = None
        self._channel: Channel | None = None
        self._held = HeldText(hold_back)
        self._repeated = 0  # characters of a channel read again that were passed on before
        self._logprobs = Logprobs(kind)
        self.plain: dict[str, Any] = {}  # for the next chunk
        self.verdict: Verdict | None = None  # the last one, on any channel
        self.nearest: Verdict | None = None  # the one nearest to a stop
        self.level: Level = "safe"  # the worst so far
        self.begun, self.over = False, False

    async def take(self, parts: list[Part]) -> Judged:
        """Takes parts of the choice that came in this order; text in a row is judged at once."""
        judged, run, self.begun = Judged(), "", True
        for number, part in enumerate(parts):
            if self.over:
                break
            self._add_plain(part.plain)
            for turn, (channel, added) in enumerate(part.added, 1):
                if not isinstance(added, str):
                    await self._take_head(judged, channel, added)
                    continue
                if channel == CONTENT[self._kind]:
                    self._logprobs.take(part.logprobs, added)
                run += added
                is_last = turn == len(part.added) and part.finish_reason is None
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

    async def _take_head(self, judged: Judged, at: Channel, head: dict[str, Any]) -> None:
        if self.over or not (fresh := _unsaid(self._heads.setdefault(at, {}), head)):
            return
        if at != (self._channel or ())[: len(at)]:
            await self._end(judged)
        if not self.over:
            merge(self.plain, as_delta(at, fresh))
            self._send(judged, "")

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
            self._reopened += 1
            if self._reopened > REOPENINGS:
                raise BadChunk("channels of a choice alternate too often")
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
        nearest = self.nearest
        if nearest is None or verdict.stopped or verdict.statistic > nearest.statistic:
            self.nearest = verdict
        text = self._held.take(verdict, final)
        skipped = min(self._repeated, len(text))
        text, self._repeated = text[skipped:], self._repeated - skipped
        known.released += len(text)
        known.tokens, known.harmful = verdict.tokens, verdict.harmful
        judged.verdicts.append(verdict)
        judged.scores.append(
            {
                "channel": name_of(self._channel),
                "scores": rounded(verdict.scores),
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
        judged.fields.append(no_text(self._kind) | fields)

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
        return {
            "index": self.index,
            "level": self.level,
            "stopped": self.stopped,
            **why(self.verdict),
            "channel": name_of(self._channel) if self.stopped else None,
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

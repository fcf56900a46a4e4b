"""The gateway: a request to the LLM, its answer under the monitor, judged chunks to the client."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from anyio import CancelScope

from serve.choices import GuardedChoice, Judged
from serve.chunks import BadChunk, Part, no_text, read_chunk
from serve.engine import Engine
from serve.operations import log, log_failure
from serve.prompt_check import CheckFailed, PromptCheck
from serve.requests import Ask, Refused
from serve.upstream import Answer, UpstreamError
from serve.verdicts import filter_results, moderation_object

READ_AHEAD = 64  # events of the upstream that may wait to be judged
CONSTANT = {"id", "object", "created", "model", "system_fingerprint", "service_tier", "provider"}
BLOCKED = "The prompt was blocked."


class Upstream(Protocol):
    """An LLM: `serve.upstream.HttpUpstream` or `serve.embedded.EmbeddedUpstream`."""

    def ask(self, kind: str, body: dict[str, Any], headers: Mapping[str, str]): ...

    async def models(self, headers: Mapping[str, str]) -> tuple[int, bytes]: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Manners:
    """How the gateway answers.

    Attributes:
        stop_text: What the client reads where the monitor stops the answer.
        refusal: The answer to a blocked prompt, as a message; empty: an error 400 instead.
        azure: Chunks carry Azure's content filter results.
        check_failure: What becomes of a prompt that could not be checked.
    """

    stop_text: str
    refusal: str
    azure: bool
    check_failure: str  # "block" or "pass"


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
        except Exception as error:
            queue.put_nowait(error)

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


class Conversation:
    """One request's answer, from the upstream's first event on. `chunks` gives it out, judged."""

    def __init__(
        self, engine: Engine, ask: Ask, manners: Manners, checked: tuple[bool, float] | None
    ) -> None:
        self._engine, self._ask, self._manners, self._checked = engine, ask, manners, checked
        self._choices = [
            GuardedChoice(
                index, ask.kind, partial(engine.open, prompt), engine.hold_back, manners.stop_text
            )
            for index, prompt in enumerate(ask.prompts)
        ]
        self._envelope: dict[str, Any] = {}  # what all chunks bear
        self._fresh: dict[str, Any] = {}  # what came since the last chunk, for the next one
        self._began = time.monotonic()
        self._seen: set[str] = set()  # where the first text was seen

    async def chunks(self, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Yields chunks to send, the last one included but not `[DONE]`."""
        last: list[dict[str, Any]] = []
        try:
            async with read_ahead(answer.events, self._engine.closing) as batches:
                async with aclosing(batches):
                    async for batch in batches:
                        judged, failure = await self._judge(batch)
                        if self._over and any(choice.stopped for choice in self._choices):
                            last = judged  # the upstream is closed before a slow client has them
                            self._engine.counts.cancelled.labels("stopped").inc()
                            break
                        for chunk in judged:
                            yield chunk
                        if failure:
                            raise failure
            for chunk in last:
                yield chunk
            if not self._over and not answer.done:
                raise UpstreamError(502, "upstream_incomplete", "the upstream's answer broke off")
            for choice in self._choices:  # done without a word on why
                if choice.begun and not choice.over:
                    ending = await choice.take([Part(choice.index, finish_reason="stop")])
                    for chunk in self._formatted(choice, ending):
                        yield chunk
            if self._ask.moderation:
                yield self._chunk([]) | {"moderation": self._moderation()}
        except BadChunk as error:
            yield self._error("upstream_invalid", str(error))
        except UpstreamError as error:
            yield self._error(error.code, str(error))
        except Closing:
            yield self._error("shutting_down", "the service is closing")
        except Exception as error:
            log_failure("monitor_failed", error)
            self._engine.counts.failures.labels("monitor").inc()
            yield self._error("monitor_failed", "the monitor failed; nothing more is passed on")

    @property
    def _over(self) -> bool:
        return all(choice.over for choice in self._choices)

    async def _judge(self, batch: list[object]) -> tuple[list[dict[str, Any]], Exception | None]:
        """Returns the chunks that a batch of events releases, and what failed in it."""
        began = time.monotonic()
        parts: dict[int, list[Part]] = {}
        alone = []  # chunks without choices: usage, annotations
        failure: Exception | None = None  # what came before it is judged all the same
        for event in batch:
            try:
                envelope, found, withheld = self._read(event)
            except (BadChunk, UpstreamError) as error:
                failure = error
                break
            self._engine.counts.fields.inc(len(withheld))
            if not found:
                alone.append(envelope | {"choices": []})
                continue
            self._envelope |= {name: envelope.pop(name) for name in CONSTANT & envelope.keys()}
            self._fresh |= envelope
            for part in found:
                self._engine.counts.fields.inc(len(part.withheld))
                if part.index < len(self._choices):
                    parts.setdefault(part.index, []).append(part)
                if part.texts:
                    self._note_first("upstream")
        found = await asyncio.gather(
            *(self._choices[index].take(some) for index, some in parts.items()),
            return_exceptions=True,
        )
        if parts:
            self._engine.counts.added.observe(time.monotonic() - began)
        chunks: list[dict[str, Any]] = []
        for index, one in zip(parts, found, strict=True):
            if isinstance(one, Judged):
                chunks += self._formatted(self._choices[index], one)
            else:
                failure = one  # the monitor's
        return chunks + alone, failure

    def _read(self, event: object) -> tuple[dict[str, Any], list[Part], list[str]]:
        if isinstance(event, dict) and event.get("error"):
            raise UpstreamError(502, "upstream_error", "the upstream reported an error")
        return read_chunk(event, self._ask.kind)

    def _formatted(self, choice: GuardedChoice, judged: Judged) -> Iterator[dict[str, Any]]:
        """Makes chunks of what was judged, the choice's last one included."""
        counts, index = self._engine.counts, choice.index
        for fields in judged.fields:
            self._note_first("client")
            yield self._chunk([{"index": index, **fields, "finish_reason": None}])
        if self._ask.scores and judged.scores:
            yield self._chunk([]) | {"scm": {"index": index, "judged": judged.scores}}
        for verdict in judged.verdicts:
            self._engine.note(verdict)
        counts.held.observe(choice.withheld)
        if judged.finish_reason is None:
            return
        self._engine.note_end(choice.verdict)
        counts.released.inc(choice.released)
        counts.withheld.inc(choice.withheld)
        last = {"index": index, **no_text(self._ask.kind), **choice.plain}
        last["finish_reason"] = judged.finish_reason
        if self._manners.azure:
            last["content_filter_results"] = filter_results(choice.level, choice.stopped)
        details = choice.details()
        yield self._chunk([last]) | {"scm": details}
        log("choice_ended", id=self._envelope.get("id"), **without_lists(details))

    def _note_first(self, at: str) -> None:
        if at not in self._seen:
            self._seen.add(at)
            self._engine.counts.first.labels(at).observe(time.monotonic() - self._began)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        fresh, self._fresh = (self._fresh, {}) if choices else ({}, self._fresh)
        return self._envelope | fresh | {"choices": choices}

    def _moderation(self) -> dict[str, Any]:
        verdicts = [
            (choice.stopped, self._engine.nearness(choice.verdict) if choice.verdict else 0.0)
            for choice in self._choices
        ]
        return moderation_object(verdicts, self._checked, self._engine.name)

    def _error(self, code: str, message: str) -> dict[str, Any]:
        self._engine.counts.failures.labels(code).inc()
        log("answer_broke_off", id=self._envelope.get("id"), code=code)
        error = {"message": message, "type": "server_error", "param": None, "code": code}
        return {"error": error}

    def close(self) -> None:
        """Gives the places of all choices back."""
        for choice in self._choices:
            if not choice.over:
                self._engine.counts.withheld.inc(choice.withheld)
            choice.leave()


def without_lists(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts that fit into a line of the log."""
    return {name: value for name, value in facts.items() if not isinstance(value, list)}


class Events:
    """Chunks as server-sent events. Ends the answer however the client leaves."""

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], stack: AsyncExitStack) -> None:
        self._chunks, self._stack = chunks, stack

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._lines()

    async def _lines(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks:
                yield b"data: " + as_json(chunk) + b"\n\n"
            yield b"data: [DONE]\n\n"
        finally:
            with CancelScope(shield=True):
                await self.aclose()

    async def aclose(self) -> None:
        """Ends the answer and gives its places back."""
        await self._chunks.aclose()
        await self._stack.aclose()


def as_json(value: object) -> bytes:
    """Returns a value as compact JSON; halves of characters are escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


class Gateway:
    """Answers requests by an upstream's answers, judged."""

    def __init__(
        self, engine: Engine, upstream: Upstream, check: PromptCheck, manners: Manners
    ) -> None:
        self._engine, self.upstream, self._check = engine, upstream, check
        self._manners = manners

    async def close(self) -> None:
        """Closes what leads elsewhere."""
        await self.upstream.close()
        await self._check.close()

    async def begin(
        self, ask: Ask, headers: Mapping[str, str]
    ) -> tuple[AsyncIterator[dict[str, Any]], AsyncExitStack]:
        """Asks the upstream, and has the prompt checked meanwhile.

        Returns:
            The judged chunks, and what must be closed after them.

        Raises:
            Refused: There is no place, the upstream refuses or fails, or the prompt is blocked.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._engine.taking(len(ask.prompts)))
            checking = asyncio.create_task(self._checked(ask.prompts))
            stack.callback(checking.cancel)
            try:
                answer = await stack.enter_async_context(
                    self.upstream.ask(ask.kind, ask.body, headers)
                )
            except UpstreamError as error:
                log("upstream_failed", code=error.code, status=error.status)
                raise Refused(
                    error.status, str(error), kind="server_error", code=error.code, body=error.body
                ) from None
            checked = await checking
            if checked is not None and checked[0]:
                self._engine.counts.blocked.inc()
                self._engine.counts.cancelled.labels("prompt").inc()
                raise self._blocked(ask)
            talk = Conversation(self._engine, ask, self._manners, checked)
            stack.callback(talk.close)
            return talk.chunks(answer), stack.pop_all()

    async def _checked(self, prompts: list[str]) -> tuple[bool, float] | None:
        """Returns the worst of the prompts' verdicts."""
        try:
            found = [await self._check.check(prompt) for prompt in dict.fromkeys(prompts)]
        except CheckFailed as error:
            self._engine.counts.failures.labels("prompt_check").inc()
            log_failure("prompt_check_failed", error)
            if self._manners.check_failure == "pass":
                return None
            raise Refused(
                503, "the prompt could not be checked", kind="server_error",
                code="prompt_check_failed", retry_after=5,
            ) from None  # fmt: skip
        return max((one for one in found if one is not None), default=None)

    def _blocked(self, ask: Ask) -> Exception:
        if self._manners.refusal:
            return Blocked(self._manners.refusal)
        inner = {"code": "ResponsibleAIPolicyViolation"}
        inner["content_filter_result"] = filter_results("unsafe", True)
        error = {"message": BLOCKED, "type": "invalid_request_error", "param": "prompt"}
        error |= {"code": "content_filter", "status": 400, "innererror": inner}
        return Refused(400, BLOCKED, body={"error": error})


class Blocked(Exception):
    """A prompt was blocked and is answered by a refusal; the message is its text."""

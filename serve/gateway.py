"""The gateway: a request to the LLM, its answer under the monitor, judged chunks to the client."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import CancelScope

from monitor.batcher import BatchedStream
from serve.answers import opening, prompts_told
from serve.choices import GuardedChoice, Judged
from serve.chunks import CONSTANT, BadChunk, Part, no_text, read_chunk
from serve.engine import Engine
from serve.operations import log, log_failure
from serve.prompt_check import Checked, CheckFailed, PromptCheck
from serve.reading import Closing, read_ahead, until_over
from serve.requests import Ask, Refused, shutting_down, unavailable
from serve.upstream import Answer, Upstream, UpstreamError
from serve.verdicts import filter_results, moderation_object

SAID_ONCE = CONSTANT | {"created"}  # fields of chunks that never change
BLOCKED = "The prompt was blocked."


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


class Conversation:
    """One request's answer, from the upstream's first event on. `chunks` gives it out, judged.

    `checked` holds what is known of its prompts.
    """

    def __init__(
        self, engine: Engine, ask: Ask, manners: Manners, checked: Mapping[str, Checked]
    ) -> None:
        self._engine, self._ask, self._manners, self._checked = engine, ask, manners, checked
        self._ready = {prompt: one.stream for prompt, one in checked.items() if one.stream}
        self._choices = [
            GuardedChoice(
                index, ask.kind, partial(self._open, prompt), engine.hold_back, manners.stop_text
            )
            for index, prompt in enumerate(ask.prompts)
        ]
        self._envelope: dict[str, Any] = {}  # what all chunks bear
        self._fresh: dict[str, Any] = {}  # what came since the last chunk, for the next one
        self._began = time.monotonic()
        self._seen: set[str] = set()  # where the first text was seen

    async def _open(self, prompt: str) -> BatchedStream:
        """Opens a stream: the one that has read the prompt for its check, the first time."""
        stream = self._ready.pop(prompt, None)
        return await self._engine.open(prompt) if stream is None or stream.closed else stream

    async def chunks(self, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Yields chunks to send, the last one included but not `[DONE]`."""
        for chunk in opening(self._ask, self._checked, self._engine.name, self._manners.azure):
            yield chunk
        last: list[dict[str, Any]] = []
        try:
            async with read_ahead(answer.events, self._engine.closing) as batches:
                arriving = until_over(batches, lambda: self._over)
                async with aclosing(batches), aclosing(arriving):
                    async for batch in arriving:
                        judged, failure = await self._judge(batch)
                        if self._over and any(choice.stopped for choice in self._choices):
                            last = judged  # the upstream is closed before a slow client has them
                            self._engine.counts.cancelled.labels("stopped").inc()
                            break
                        for chunk in judged:
                            yield chunk
                        if failure and not self._over:
                            raise failure
            for chunk in last:
                yield chunk
            begun = [choice for choice in self._choices if choice.begun]
            if not begun or not (self._over or answer.done):
                raise UpstreamError(502, "upstream_incomplete", "the upstream's answer broke off")
            for choice in begun:  # done without a word on why
                if not choice.over:
                    ending = await choice.take([Part(choice.index, finish_reason="stop")])
                    for chunk in self._formatted(choice, ending):
                        yield chunk
            if self._fresh:  # it came with or after the last chunk
                yield self._envelope | self._fresh | {"choices": []}
            if self._ask.moderation:
                yield self._chunk([]) | {"moderation": self._moderation()}
        except BadChunk as error:
            yield self._error("upstream_invalid", str(error))
        except UpstreamError as error:
            yield self._error(error.code, str(error))
        except Closing:
            yield self._error("shutting_down", "the service is closing")
        except Exception as error:
            refused = self._engine.refusal(error)
            code = refused.body["error"]["code"]
            yield self._error(code, f"{refused}; nothing more is passed on")

    @property
    def _over(self) -> bool:
        return all(choice.over for choice in self._choices)

    async def _judge(self, batch: list[object]) -> tuple[list[dict[str, Any]], Exception | None]:
        """Returns the chunks that a batch of events releases, and what failed in it."""
        began = time.monotonic()
        parts: dict[int, list[Part]] = {}
        early, late = [], []  # chunks without choices: annotations, usage
        failure: Exception | None = None  # what came before it is judged all the same
        for event in batch:
            try:
                envelope, found, withheld = self._read(event)
            except (BadChunk, UpstreamError) as error:
                failure = error
                break
            self._engine.counts.fields.inc(len(withheld))
            said = {name: envelope.pop(name) for name in SAID_ONCE & envelope.keys()}
            self._envelope = said | self._envelope
            if not found:
                (late if parts else early).append(envelope)
                continue
            self._fresh |= envelope
            for part in found:
                self._engine.counts.fields.inc(len(part.withheld))
                if part.index < len(self._choices):
                    parts.setdefault(part.index, []).append(part)
                else:  # none that was asked for
                    self._engine.counts.fields.inc(len(part.added))
                if part.texts:
                    self._note_first("upstream")
        found = await asyncio.gather(
            *(self._choices[index].take(some) for index, some in parts.items()),
            return_exceptions=True,
        )
        if parts:
            self._engine.counts.added.observe(time.monotonic() - began)
        chunks = [self._envelope | one | {"choices": []} for one in early]
        for index, one in zip(parts, found, strict=True):
            if isinstance(one, Judged):
                chunks += self._formatted(self._choices[index], one)
            else:
                failure = one  # the monitor's
        return chunks + [self._envelope | one | {"choices": []} for one in late], failure

    def _read(self, event: object) -> tuple[dict[str, Any], list[Part], list[str]]:
        if isinstance(event, dict) and event.get("error"):
            raise UpstreamError(502, "upstream_error", "the upstream reported an error")
        return read_chunk(event, self._ask.kind, self._ask.tools)

    def _formatted(self, choice: GuardedChoice, judged: Judged) -> Iterator[dict[str, Any]]:
        """Makes chunks of what was judged, the choice's last one included."""
        counts, index = self._engine.counts, choice.index
        if choice.released:
            self._note_first("client")
        for fields in judged.fields:
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
        facts = without_lists(details)  # its level is not the log's
        log("choice_ended", id=self._envelope.get("id"), verdict=facts.pop("level"), **facts)

    def _note_first(self, at: str) -> None:
        if at not in self._seen:
            self._seen.add(at)
            self._engine.counts.first.labels(at).observe(time.monotonic() - self._began)

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        fresh, self._fresh = (self._fresh, {}) if choices else ({}, self._fresh)
        return self._envelope | fresh | {"choices": choices}

    def _moderation(self) -> dict[str, Any]:
        verdicts = [
            (choice.stopped, self._engine.nearness(choice.nearest) if choice.nearest else 0.0)
            for choice in self._choices
        ]
        prompts = [(one.flagged, one.score) for one in self._checked.values()]
        return moderation_object(verdicts, max(prompts, default=None), self._engine.name)

    def _error(self, code: str, message: str) -> dict[str, Any]:
        self._engine.counts.failures.labels(code).inc()
        log("answer_broke_off", id=self._envelope.get("id"), code=code)
        error = {"message": message, "type": "server_error", "param": None, "code": code}
        return {"error": error}

    def close(self) -> None:
        """Gives the places of all choices back."""
        for choice in self._choices:
            if not choice.over:  # else it was counted with its last chunk
                self._engine.counts.released.inc(choice.released)
                self._engine.counts.withheld.inc(choice.withheld)
            choice.leave()


def without_lists(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts that fit into a line of the log."""
    return {name: value for name, value in facts.items() if not isinstance(value, list | dict)}


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
        self, ask: Ask, headers: Mapping[str, str], stack: AsyncExitStack
    ) -> AsyncIterator[dict[str, Any]]:
        """Asks the upstream, and has the prompt checked meanwhile.

        Args:
            ask: The request.
            headers: Its headers.
            stack: Takes what must be closed after the answer, or after a failure.

        Returns:
            The judged chunks.

        Raises:
            Refused: There is no place, the upstream refuses or fails, the monitor fails, the prompt
                is blocked, or the service closes.
            Blocked: The prompt is blocked, and that is to be said by an answer.
        """
        stack.enter_context(self._engine.taking(len(ask.prompts)))
        checked: dict[str, Checked] = {}
        stack.callback(_leave, checked)
        asking = asyncio.create_task(stack.enter_async_context(self.upstream.ask(ask, headers)))
        checking = asyncio.create_task(self._check_all(ask.prompts, checked))
        closing = asyncio.create_task(self._engine.closing.wait())
        waiting = tasks = {asking, checking, closing}
        try:
            while not waiting.isdisjoint({asking, checking}):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if closing in done:
                    raise shutting_down()
                if checking in done:  # a blocked prompt does not wait for the upstream
                    checking.result()
                    if any(one.blocked for one in checked.values()):
                        raise self._blocked(ask, checked)
                if asking in done:
                    answer = await self._answer(asking)
        finally:
            for task in tasks:
                task.cancel()
            with CancelScope(shield=True):
                await asyncio.gather(*tasks, return_exceptions=True)
        talk = Conversation(self._engine, ask, self._manners, checked)
        stack.callback(talk.close)
        return talk.chunks(answer)

    @staticmethod
    async def _answer(asking: asyncio.Task[Answer]) -> Answer:
        try:
            return await asking
        except UpstreamError as error:
            log("upstream_failed", code=error.code, status=error.status)
            raise Refused(
                error.status, str(error), kind="server_error", code=error.code, body=error.body,
                retry_after=error.retry_after,
            ) from None  # fmt: skip

    async def _check_all(self, prompts: list[str], checked: dict[str, Checked]) -> None:
        """Checks each prompt once, and fills in what is found."""
        for prompt in dict.fromkeys(prompts):
            try:
                found = await self._check.check(prompt)
            except CheckFailed as error:
                self._engine.counts.failures.labels("prompt_check").inc()
                log_failure("prompt_check_failed", error)
                if self._manners.check_failure == "pass":
                    continue
                message = "the prompt could not be checked"
                raise unavailable(message, "prompt_check_failed", 5) from None
            if found is not None:
                checked[prompt] = found
                self._engine.counts.flagged.inc(found.flagged)

    def _blocked(self, ask: Ask, checked: Mapping[str, Checked]) -> Exception:
        self._engine.counts.blocked.inc()
        self._engine.counts.cancelled.labels("prompt").inc()
        told = opening(ask, checked, self._engine.name, self._manners.azure)
        if self._manners.refusal:
            return Blocked(self._manners.refusal, told)
        inner = {"code": "ResponsibleAIPolicyViolation"}
        inner["content_filter_result"] = filter_results("unsafe", True)
        error = {"message": BLOCKED, "type": "invalid_request_error", "param": "prompt"}
        error |= {"code": "content_filter", "status": 400, "innererror": inner}
        return Refused(400, BLOCKED, body={"error": error, **prompts_told(ask, checked)})


def _leave(checked: Mapping[str, Checked]) -> None:
    """Gives back the places of streams that read a prompt for its check."""
    for one in checked.values():
        if one.stream is not None:
            one.stream.leave()


class Blocked(Exception):
    """A prompt was blocked and is answered by a refusal; the message is its text.

    Attributes:
        told: Chunks that come before it.
    """

    def __init__(self, text: str, told: list[dict[str, Any]]) -> None:
        super().__init__(text)
        self.told = told

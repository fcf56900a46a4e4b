"""Answers over HTTP: event streams that end however the client leaves, and refusals."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

from anyio import CancelScope
from sse_starlette import EventSourceResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from serve.chunks import CONTENT, OBJECTS, as_delta, no_text
from serve.json_text import as_json
from serve.prompt_check import Checked
from serve.requests import Ask
from serve.verdicts import filter_results, prompt_result


class ClientLeft(Exception):
    """The client went away before it got an answer."""


async def until_gone(request: Request, work: Awaitable) -> Any:
    """Waits for work, and cancels it where the client leaves meanwhile; the body was read.

    Raises:
        ClientLeft: It left.
    """

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.create_task(leaves())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        with CancelScope(shield=True):
            await asyncio.wait([working, leaving])


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


class EventStream(EventSourceResponse):
    """Ends its events even where the client had left before the first one was asked for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await self.body_iterator.aclose()


class Shutdown:
    """The event that sse-starlette sets when the server closes; it is the engine's own."""

    def __init__(self, closing: asyncio.Event) -> None:
        self.set, self.is_set = closing.set, closing.is_set


def prompts_told(ask: Ask, checked: Mapping[str, Checked]) -> dict[str, Any]:
    """Returns the field `scm` with what is known of each choice's prompt; nothing: no field."""
    known = [
        {"index": index}
        | (prompt_result(one.verdict) or {"flagged": one.flagged, "score": round(one.score, 4)})
        for index, prompt in enumerate(ask.prompts)
        if (one := checked.get(prompt))
    ]
    return {"scm": {"prompts": known}} if known else {}


def opening(
    ask: Ask, checked: Mapping[str, Checked], model: str, azure: bool
) -> list[dict[str, Any]]:
    """Returns the chunk that tells of the prompts before the answer begins, where any is to.

    Args:
        ask: The request; it tells whether its client wants the verdicts.
        checked: What is known of its prompts.
        model: The monitor's name.
        azure: The chunk bears Azure's prompt filter results, too.
    """
    told = prompts_told(ask, checked) if ask.scores else {}
    if azure and checked:
        told["prompt_filter_results"] = [
            {
                "prompt_index": index,
                "content_filter_results": filter_results(
                    "unsafe" if one.flagged else "safe", one.blocked
                ),
            }
            for index, prompt in enumerate(ask.prompts[:: ask.count])
            if (one := checked.get(prompt))
        ]
    envelope = {"id": "", "object": OBJECTS[ask.kind], "created": 0, "model": model}
    return [envelope | {"choices": []} | told] if told else []


def refusal(text: str, ask: Ask, model: str) -> list[dict[str, Any]]:
    """Returns the chunks that answer a blocked prompt as if the LLM had refused."""
    envelope = {"id": f"blocked-{uuid4().hex}", "object": OBJECTS[ask.kind]}
    envelope |= {"created": 0, "model": model}
    said = as_delta(CONTENT[ask.kind], text)
    if ask.kind == "chat":
        said["delta"] = {"role": "assistant"} | said["delta"]
    endings = [(said, None), (no_text(ask.kind), "content_filter")]
    return [
        envelope | {"choices": [{"index": index, **fields, "finish_reason": finish}]}
        for index in range(len(ask.prompts))
        for fields, finish in endings
    ]

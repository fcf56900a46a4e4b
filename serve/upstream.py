"""The LLM behind the gateway: an OpenAI-compatible server, always asked for a stream."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import httpx2

from serve.chunks import Kind, is_name
from serve.json_text import as_json, read_json
from serve.requests import Ask

PATHS: dict[Kind, str] = {"chat": "/chat/completions", "text": "/completions"}
PASSED_ON = ("openai-organization", "openai-project", "traceparent", "tracestate", "x-request-id")
LONGEST_EVENT = 1 << 20  # bytes
LONGEST_ERROR = 1 << 16  # bytes of an answer that is no stream and no completion


class UpstreamError(RuntimeError):
    """The upstream failed.

    Attributes:
        status: HTTP status for the client, where nothing was sent yet.
        code: What happened, in one word.
        body: The answer for the client then; None where the message says it all.
        retry_after: Seconds after which another try may succeed; None for none.
    """

    def __init__(
        self, status: int, code: str, message: str, body: dict | None = None,
        retry_after: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.code, self.body, self.retry_after = status, code, body, retry_after


@dataclass
class Answer:
    """An answer that has begun; `events` are its chunks, until it says that it is done."""

    events: AsyncGenerator[object] = field(init=False)
    done: bool = False  # the upstream said so itself


class Upstream(Protocol):
    """An LLM: `HttpUpstream` or `serve.embedded.EmbeddedUpstream`."""

    def ask(self, ask: Ask, headers: Mapping[str, str]): ...

    async def models(self, headers: Mapping[str, str]) -> tuple[int, bytes]: ...

    async def close(self) -> None: ...


class HttpUpstream:
    """A server at an address that the operator gave; nothing of a request can change it.

    Args:
        url: Where its API begins, such as http://127.0.0.1:8000/v1.
        key: Sent instead of the client's own; None passes that on.
        connect_timeout: Seconds to connect.
        idle_timeout: Seconds without a byte, the first one included.
        transport: For tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        connect_timeout: float,
        idle_timeout: float,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._key = url.rstrip("/"), key
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(idle_timeout, connect=connect_timeout),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
            transport=transport,
            trust_env=False,
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        passed = {n: headers[n] for n in PASSED_ON if n in headers and headers[n].isascii()}
        key = f"Bearer {self._key}" if self._key else headers.get("authorization")
        if key:
            passed["authorization"] = key
        return passed | {"accept-encoding": "identity"}

    async def models(self, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Returns status and body of the list of models."""
        try:
            reply = await self._client.get(f"{self._url}/models", headers=self._headers(headers))
            return reply.status_code, reply.content
        except httpx2.HTTPError as error:
            raise _failure(error) from None

    @asynccontextmanager
    async def ask(self, ask: Ask, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """Sends a request; leaving the block ends it there and then.

        Raises:
            UpstreamError: It cannot be reached or refuses; in `events`, it breaks off.
        """
        request = self._client.build_request(
            "POST",
            self._url + PATHS[ask.kind],
            content=as_json(ask.body | {"stream": True}),
            headers=self._headers(headers)
            | {"accept": "text/event-stream, application/json", "content-type": "application/json"},
        )
        try:
            reply = await self._client.send(request, stream=True)
        except httpx2.HTTPError as error:
            raise _failure(error) from None
        try:
            if reply.status_code != 200:
                raise _refusal(reply, await _read(reply, LONGEST_ERROR))
            answer = Answer()
            streams = reply.headers.get("content-type", "").startswith("text/event-stream")
            answer.events = (_events if streams else _whole)(reply, answer)
            yield answer
        finally:
            await reply.aclose()


async def _events(reply: httpx2.Response, answer: Answer) -> AsyncGenerator[object]:
    try:
        async for event in httpx2.EventSource(reply, LONGEST_EVENT):
            if event.data == "[DONE]":
                answer.done = True
                return
            if not event.data:
                continue
            try:
                yield read_json(event.data)
            except ValueError:
                raise UpstreamError(502, "upstream_invalid", "an event is no JSON") from None
    except httpx2.HTTPError as error:
        raise _failure(error) from None
    finally:
        await reply.aclose()  # a stop closes these events before the answer has gone out


async def _whole(reply: httpx2.Response, answer: Answer) -> AsyncGenerator[object]:
    """Yields the answer of a server that does not stream, as one chunk."""
    content = await _read(reply, 16 * LONGEST_EVENT)
    if content is None:
        raise UpstreamError(502, "upstream_invalid", "the answer is neither a stream nor JSON")
    answer.done = True
    yield content


async def _read(reply: httpx2.Response, most: int) -> object:
    """Reads a body as JSON; None if it is too long or none."""
    content = b""
    try:
        async for piece in reply.aiter_bytes():
            content += piece
            if len(content) > most:
                return None
        return read_json(content)
    except httpx2.HTTPError as error:
        raise _failure(error) from None
    except ValueError:
        return None


def _refusal(reply: httpx2.Response, content: object) -> UpstreamError:
    """Tells of an answer that is none; of its words only names pass, which no model wrote."""
    status = reply.status_code if 400 <= reply.status_code < 600 else 502
    given = content.get("error") if isinstance(content, dict) else None
    given = given if isinstance(given, dict) else {}
    named = {name: given[name] for name in ("type", "param", "code") if is_name(given.get(name))}
    message = f"the upstream answered {reply.status_code}"
    error = {"message": message, "type": "upstream_error", "param": None, "code": None} | named
    wait = reply.headers.get("retry-after", "")
    wait = int(wait) if wait.isascii() and wait.isdigit() and len(wait) < 7 else None
    return UpstreamError(status, "upstream_refused", message, {"error": error}, wait)


def _failure(error: httpx2.HTTPError) -> UpstreamError:
    if isinstance(error, httpx2.TimeoutException):
        return UpstreamError(504, "upstream_timeout", "the upstream did not answer in time")
    if isinstance(error, httpx2.ConnectError):
        return UpstreamError(502, "upstream_unreachable", "the upstream cannot be reached")
    return UpstreamError(502, "upstream_broke_off", f"the upstream failed: {type(error).__name__}")

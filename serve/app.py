"""The service: routes of the gateway, sessions, dialects, the page and its operations."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from data.json_rows import iterate_rows
from monitor.batcher import NoPlace
from monitor.stream import StreamClosed
from serve.answers import ClientLeft, Events, EventStream, Shutdown, refusal, until_gone
from serve.chunks import Kind, assemble, is_name
from serve.dialects.alibaba import Alibaba, read_form
from serve.dialects.litellm import LiteLLM
from serve.dialects.moderations import moderate
from serve.engine import Engine
from serve.gateway import Blocked, Gateway
from serve.json_text import as_json, reply
from serve.operations import log, log_failure
from serve.requests import PromptFrom, Refused, as_object, read_ask, read_body, read_object, take
from serve.session import Session
from serve.sessions import Sessions
from serve.upstream import UpstreamError

PAGE = Path(__file__).with_name("page.html")
SAMPLE = Path(__file__).parents[1] / "FineHarm" / "sample" / "test.json"
MOST_HELD = 1 << 16  # tokens that a session may hold back
EXAMPLE = "sample-a075"  # the released monitor stops it
PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';" + (
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
)


class Service:
    """All routes of a running engine."""

    def __init__(
        self,
        engine: Engine,
        gateway: Gateway,
        sessions: Sessions,
        *,
        prompt_from: PromptFrom = "last-user",
        max_body: int = 1 << 20,
        send_timeout: float = 60.0,
        grace: float = 10.0,
        stop_text: str = "",
    ) -> None:
        self.engine, self.gateway, self.sessions = engine, gateway, sessions
        self._prompt_from, self._max_body = prompt_from, max_body
        self._send_timeout, self._grace = send_timeout, grace
        self.guardrail = LiteLLM(engine, sessions)
        self._alibaba = Alibaba(engine, sessions, stop_text)

    def app(self) -> Starlette:
        """Returns the ASGI application."""
        post, get = ["POST"], ["GET"]
        routes = [
            Route("/", self._page, methods=get),
            Route("/", self._answered(self.alibaba), methods=post),
            Route("/v1/chat/completions", self._answered(self.chat), methods=post),
            Route("/v1/completions", self._answered(self.text), methods=post),
            Route("/v1/models", self._answered(self.models), methods=get),
            Route("/v1/moderations", self._answered(self.moderations), methods=post),
            Route("/v1/sessions", self._answered(self.open_session), methods=post),
            Route("/v1/sessions/{id}", self._answered(self.add_to_session), methods=post),
            Route("/v1/sessions/{id}", self._answered(self.show_session), methods=get),
            Route("/v1/sessions/{id}", self._answered(self.drop_session), methods=["DELETE"]),
            WebSocketRoute("/v1/sessions", self.socket),
            Route("/beta/litellm_basic_guardrail_api", self._answered(self.litellm), methods=post),
            Route("/about", self._answered(self.about), methods=get),
            Route("/example", self._answered(self.example), methods=get),
            Route("/healthz", self._healthz, methods=get),
            Route("/readyz", self._readyz, methods=get),
            Route("/metrics", self._metrics, methods=get),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self.engine.batcher:
            sweeping = asyncio.create_task(self._sweep())
            log("started", **self.engine.about())
            try:
                yield
            finally:
                self.engine.closing.set()
                sweeping.cancel()
                await self.gateway.close()
                log("ended")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(5)
            self.sessions.sweep()

    def _answered(self, handle: Callable[[Request, str], Awaitable[Response]]) -> Callable:
        """Wraps a route: who asks, refusals, failures, and the count of answers."""

        async def answer(request: Request) -> Response:
            route = request.scope["route"].path
            try:
                response = await handle(request, self.engine.tenant(request))
            except (ClientLeft, ClientDisconnect):
                self.engine.counts.cancelled.labels("client").inc()
                response = Response(status_code=499)
            except Exception as error:
                response = self._failed(error, route).response()
            self.engine.counts.requests.labels(route, response.status_code).inc()
            return response

        return answer

    def _failed(self, error: Exception, route: str) -> Refused:
        """Returns what a failure is answered with."""
        while isinstance(error, ExceptionGroup):  # of texts judged side by side
            refused = [one for one in error.exceptions if isinstance(one, Refused)]
            error = (refused or error.exceptions)[0]
        if isinstance(error, Refused | NoPlace | StreamClosed):
            return self.engine.refusal(error)
        log_failure("failed", error, route=route)
        return Refused(500, "the service failed", kind="server_error", code="internal")

    async def chat(self, request: Request, tenant: str) -> Response:
        """POST /v1/chat/completions."""
        return await self._complete(request, "chat")

    async def text(self, request: Request, tenant: str) -> Response:
        """POST /v1/completions."""
        return await self._complete(request, "text")

    async def _complete(self, request: Request, kind: Kind) -> Response:
        body = await read_object(request, self._max_body)
        ask = read_ask(body, kind, self._prompt_from, self.engine.places)
        stack = AsyncExitStack()
        try:
            beginning = self.gateway.begin(ask, self._headers(request), stack)
            chunks = await until_gone(request, beginning)
        except BaseException as error:
            await stack.aclose()
            if not isinstance(error, Blocked):
                raise
            refused = [*error.told, *refusal(str(error), ask, self.engine.name)]
            if not ask.stream:
                return reply(assemble(iter(refused), kind))
            return self._stream(Events(_each(refused), stack))
        if ask.stream:
            return self._stream(Events(chunks, stack))

        async def collect() -> Response:
            async with stack, aclosing(chunks):
                found = [chunk async for chunk in chunks]
            if "error" in found[-1]:
                status = 503 if found[-1]["error"]["code"] == "shutting_down" else 502
                return reply(found[-1], status)
            return reply(assemble(iter(found), kind))

        return await until_gone(request, collect())

    def _headers(self, request: Request) -> dict[str, str]:
        """Returns what the upstream may read of; a key of this service is not for it."""
        headers = dict(request.headers)
        if self.engine.keys:
            headers.pop("authorization", None)
        return headers

    def _stream(self, events: Events) -> EventStream:
        return EventStream(
            events,
            send_timeout=self._send_timeout,
            shutdown_event=Shutdown(self.engine.closing),
            shutdown_grace_period=self._grace,
        )

    async def models(self, request: Request, tenant: str) -> Response:
        """GET /v1/models."""
        try:
            status, content = await self.gateway.upstream.models(self._headers(request))
        except UpstreamError as error:
            raise Refused(error.status, str(error), kind="server_error", code=error.code) from None
        return Response(content, status, media_type="application/json")

    async def moderations(self, request: Request, tenant: str) -> Response:
        """POST /v1/moderations."""
        body = await read_object(request, self._max_body)
        return reply(await until_gone(request, moderate(self.engine, body)))

    async def litellm(self, request: Request, tenant: str) -> Response:
        """POST /beta/litellm_basic_guardrail_api."""
        body = await read_object(request, self._max_body)
        return reply(await until_gone(request, self.guardrail.guard(tenant, body)))

    async def alibaba(self, request: Request, tenant: str) -> Response:
        """POST /."""
        try:
            form = await read_body(request, self._max_body)
            parameters = read_form(request.scope["query_string"]) | read_form(form)
        except Refused as refused:
            return reply(self._alibaba.unjudged(refused))
        return reply(await self._alibaba.moderate(tenant, parameters))

    async def open_session(self, request: Request, tenant: str) -> Response:
        """POST /v1/sessions."""
        body = await read_object(request, self._max_body)
        identity, session = self._open(tenant, body)
        return reply({"id": identity} | session.state(), 201)

    def _open(self, tenant: str, body: dict[str, Any]) -> tuple[str, Session]:
        hold_back = take(body, "hold_back", (int, str))
        if hold_back not in (None, "sentence") and not (
            type(hold_back) is int and 0 <= hold_back <= MOST_HELD
        ):
            raise Refused(
                400, f"field 'hold_back': 0 to {MOST_HELD} tokens, or 'sentence'", param="hold_back"
            )
        prompt, identity = take(body, "prompt", str, ""), take(body, "id", str)
        if identity is not None and not is_name(identity):
            raise Refused(400, "field 'id': a name without spaces was expected", param="id")
        return self.sessions.open(tenant, prompt, identity, hold_back)

    async def add_to_session(self, request: Request, tenant: str) -> Response:
        """POST /v1/sessions/{id}."""
        body = await read_object(request, self._max_body)
        return reply(await self._add(self.sessions.find(tenant, _id(request)), body))

    async def _add(self, session, body: dict[str, Any]) -> dict[str, Any]:
        offset, final = take(body, "offset", int), take(body, "final", bool, False)
        text, ids = take(body, "text", str), take(body, "token_ids", list)
        if (text is None) == (ids is None) and not (final and text is None):
            raise Refused(400, "fields 'text' and 'token_ids': one of them was expected")
        if offset is not None and offset < 0:
            raise Refused(400, "field 'offset': a number from 0 was expected", param="offset")
        known = len(self.engine.monitor.tokenizer)
        if ids is not None and not all(type(one) is int and 0 <= one < known for one in ids):
            raise Refused(
                400, f"field 'token_ids': numbers from 0 to {known - 1} were expected",
                param="token_ids",
            )  # fmt: skip
        if text is None and ids is None:
            text = [] if isinstance(session.received, list) else ""
        return await self.sessions.add(session, offset, text if ids is None else ids, final)

    async def show_session(self, request: Request, tenant: str) -> Response:
        """GET /v1/sessions/{id}."""
        return reply(self.sessions.find(tenant, _id(request)).state())

    async def drop_session(self, request: Request, tenant: str) -> Response:
        """DELETE /v1/sessions/{id}."""
        self.sessions.drop(tenant, _id(request))
        return Response(status_code=204)

    async def socket(self, socket: WebSocket) -> None:
        """WebSocket /v1/sessions: the first message opens a session, the others add to it.

        A browser, which can set no header, names the key in the first message. Pages of other
        sites are refused.
        """
        origin = socket.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
            await socket.close(1008)
            return
        await socket.accept()
        identity = tenant = None
        try:
            session = None
            while True:
                try:
                    message = await self._message(socket)
                    if session is None:
                        tenant = self.engine.tenant(socket, take(message, "key", str, ""))
                        identity, session = self._open(tenant, message)
                        known = {"id": identity} | session.state()
                    else:
                        known = await self._add(session, message)
                except Refused as refused:
                    known = refused.body | {"status": refused.status}
                    if session is None or session.failed or session.dropped:
                        await socket.send_text(as_json(known).decode())
                        await socket.close(1008 if refused.status < 500 else 1011)
                        return
                await socket.send_text(as_json(known).decode())
        except WebSocketDisconnect:
            pass
        finally:
            if identity is not None:
                with suppress(Refused):  # it had expired
                    self.sessions.drop(tenant, identity, session)

    async def _message(self, socket: WebSocket) -> dict[str, Any]:
        received = await socket.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received["code"])
        if (text := received.get("text")) is None:
            raise Refused(400, "the message is no text", code="invalid_json")
        if len(text) > self._max_body:
            raise Refused(413, f"the message is longer than {self._max_body}", code="too_large")
        return as_object(text, "message")

    async def about(self, request: Request, tenant: str) -> Response:
        """GET /about: what the page shows of the service."""
        return reply(self.engine.about())

    async def example(self, request: Request, tenant: str) -> Response:
        """GET /example: a harmful response of the embedded corpus, for the page to play."""
        record = next(row for _, row in iterate_rows(SAMPLE) if row["id"] == EXAMPLE)
        return reply({"prompt": record["prompt"], "text": record["response"]})

    async def _page(self, request: Request) -> Response:
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(PAGE.read_text(), headers=headers)

    async def _healthz(self, request: Request) -> Response:
        return reply({"status": "ok"})

    async def _readyz(self, request: Request) -> Response:
        ready = not self.engine.closing.is_set() and await self.engine.is_ready()
        return reply({"ready": ready}, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.engine.counts.text(), media_type="text/plain; version=0.0.4")


def _id(request: Request) -> str:
    """Returns the id in a session's path; "", which none has, for what is no caller's own."""
    identity = request.path_params["id"]
    return identity if is_name(identity) else ""


async def _each(chunks: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for chunk in chunks:
        yield chunk

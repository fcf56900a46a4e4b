"""A service on a real port, the LLM behind it played by a script."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from selenium.webdriver.common.by import By
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serve.options import GatewayConfig
from serve.serving import build
from tests.conftest import settings_of


@contextmanager
def serving(app, **options) -> Iterator[str]:
    """Serves an application on a free port; yields its address."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=5, **options
        )
    )
    server.install_signal_handlers = lambda: None
    socket = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@dataclass
class Stub:
    """An LLM that sends what it is told to.

    Attributes:
        pieces: Bytes of its answer, a function of the request's body.
        delay: Seconds between them.
        begin: Seconds before its headers.
        status: Of its answer.
        kind: Content type.
        headers: Others.
        asked: Bodies and headers of its requests.
        sent: Pieces sent, of each request.
        left: Requests whose client left before all was sent.
    """

    pieces: Callable[[dict], list[bytes]] = lambda body: chat("Hello", " you", ".")
    delay: float = 0.0
    begin: float = 0.0
    status: int = 200
    kind: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[dict, dict]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    left: int = 0

    def app(self) -> Starlette:
        """Returns the ASGI application."""

        async def answer(request: Request) -> Response:
            body = await request.json()
            self.asked.append((body, dict(request.headers)))
            await asyncio.sleep(self.begin)
            number = len(self.sent)
            self.sent.append(0)

            async def send():
                try:
                    for piece in self.pieces(body):
                        await asyncio.sleep(self.delay)
                        self.sent[number] += 1
                        yield piece
                except asyncio.CancelledError:
                    self.left += 1
                    raise

            return StreamingResponse(send(), self.status, self.headers, self.kind)

        async def models(request: Request) -> Response:
            return JSONResponse({"object": "list", "data": [{"id": "stub"}]})

        return Starlette(
            routes=[
                Route("/v1/chat/completions", answer, methods=["POST"]),
                Route("/v1/completions", answer, methods=["POST"]),
                Route("/v1/models", models),
            ]
        )


def event(value: object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunk(delta: dict, index: int = 0, finish: str | None = None, **more) -> dict:
    """A chunk of a chat."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {
        "id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "stub",
        "choices": [choice], **more,
    }  # fmt: skip


DONE = b"data: [DONE]\n\n"


def chat(*texts: str) -> list[bytes]:
    """The events of a whole answer."""
    return [
        event(chunk({"role": "assistant", "content": ""})),
        *(event(chunk({"content": text})) for text in texts),
        event(chunk({}, finish="stop")),
        DONE,
    ]


def events_of(content: bytes) -> list[dict]:
    """Reads a stream's chunks; it must end as one should."""
    lines = [line for line in content.decode().split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def text_of(chunks: list[dict], index: int = 0, name: str = "content") -> str:
    """Joins a choice's text."""
    deltas = [
        choice.get("delta", {})
        for one in chunks
        for choice in one.get("choices", [])
        if choice["index"] == index
    ]
    return "".join(delta.get(name) or "" for delta in deltas)


def finish_of(chunks: list[dict], index: int = 0) -> str | None:
    """The reason that a choice ended with."""
    found = [
        choice["finish_reason"]
        for one in chunks
        for choice in one.get("choices", [])
        if choice["index"] == index and choice["finish_reason"]
    ]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.fixture()
def monitor(monitors):
    """A monitor that stops nothing."""
    _, monitor = monitors("tiny")
    monitor.settings = settings_of()
    return monitor


@pytest.fixture()
def stub() -> Stub:
    return Stub()


@pytest.fixture()
def gateway(monitor, stub, monkeypatch):
    """Starts a service before the stub: `with gateway(option=…) as url`."""

    @contextmanager
    def start(**options):
        with serving(stub.app()) as upstream:
            given = {"model_path": "tiny", "upstream": f"{upstream}/v1", "grace": 1.0} | options
            service = build(GatewayConfig(**given), monitor)
            with serving(service.app()) as url:
                start.service = service
                yield url

    start.monitor = monitor
    return start


@pytest.fixture()
def open_page(gateway, browser):
    with gateway() as url:

        def show():
            browser.get(url)
            wait(lambda: "delay" in text("about") or "cusum" in text("about"))

        def text(name: str) -> str:
            return browser.find_element(By.ID, name).text

        def wait(true, seconds: float = 15) -> None:
            until = time.monotonic() + seconds
            while not true():
                assert time.monotonic() < until, text("status")
                time.sleep(0.05)

        show.text, show.wait = text, wait
        yield show

"""An OpenAI-compatible server that sends words at a steady rate, and a bare proxy before it.

Run as a process of its own, so that it takes none of the measured one's time:
python -m benchmarks.stub_llm RATE | python -m benchmarks.stub_llm http://…
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle, islice

import httpx2
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

WORDS = (
    "a story of the sea and of those who went out on it one day in spring , as they say .".split()
)


def words(count: int) -> list[str]:
    """Returns what an answer of so many chunks consists of."""
    return [f"{word} " for word in islice(cycle(WORDS), count)]


def stub(rate: float) -> Starlette:
    """Returns a server that sends `max_tokens` chunks, `rate` of them a second (0: at once)."""

    async def answer(request: Request) -> Response:
        body = await request.json()

        async def chunks() -> AsyncIterator[bytes]:
            loop = asyncio.get_running_loop()
            began = loop.time()
            base = {"id": "s", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
            for number, word in enumerate(words(body["max_tokens"])):
                if rate:
                    await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                yield b"data: " + json.dumps(base | {"choices": [choice]}).encode() + b"\n\n"
            choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
            yield b"data: " + json.dumps(base | {"choices": [choice]}).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"

        return EventSourceResponse(chunks())

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


def bare_proxy(url: str) -> Starlette:
    """Returns a proxy of the gateway's stack that reads and writes each chunk and judges none."""
    client = httpx2.AsyncClient(timeout=300, limits=httpx2.Limits(max_connections=None))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def answer(request: Request) -> Response:
        body = await request.json()

        async def chunks() -> AsyncIterator[bytes]:
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
                async for event in httpx2.EventSource(reply):
                    data = event.data
                    if data != "[DONE]":
                        data = json.dumps(json.loads(data), separators=(",", ":"))
                    yield b"data: " + data.encode() + b"\n\n"

        return EventSourceResponse(chunks())

    routes = [Route("/v1/chat/completions", answer, methods=["POST"])]
    return Starlette(routes=routes, lifespan=lifespan)


if __name__ == "__main__":
    given = sys.argv[1]
    app = bare_proxy(given) if given.startswith("http") else stub(float(given))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    listening = server.config.bind_socket()
    print(f"listens at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    server.run(sockets=[listening])

"""LiteLLM's proxy streams through the gateway's Generic Guardrail API (run-benchmark.sh litellm).

LiteLLM, in an environment of its own, asks a stub and has each piece judged here. The thresholds
are set so that a text of the stub is stopped in its midst. What LiteLLM's client may see of it is
compared with what the monitor lets pass of the whole; a text that passes is read, too.
"""

import asyncio
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from benchmarks.options import LiteLLMConfig
from benchmarks.timing import recorded
from monitor.rules import DelayK, Policy
from monitor.settings import MonitorSettings
from monitor.stream import StreamingContentMonitor
from serve.options import GatewayConfig
from serve.serving import build
from utils.files import InputError

TEXT = (
    "Light bends where it enters a drop of water. It is mirrored at the back of the drop, and bends"
    " once more where it leaves. Each colour takes another way, so one sees them side by side."
)
PROMPT = "How do rainbows come about?"
PIECE = 5  # characters that the stub sends at once
PAUSE = 0.25  # seconds between them
KEY = "sk-any"  # LiteLLM wants one


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serves an application in a thread; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    listening = server.config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


class Stub:
    """An LLM that sends `TEXT` piece by piece; counts what it sent."""

    def __init__(self) -> None:
        self.sent, self.finished = 0, False

    def app(self) -> Starlette:
        """Returns the ASGI application."""

        async def answer(request: Request) -> Response:
            self.sent, self.finished = 0, False

            async def chunks():
                base = {"id": "s", "object": "chat.completion.chunk", "created": 1, "model": "m"}
                for place in range(0, len(TEXT), PIECE):
                    delta = {"role": "assistant", "content": TEXT[place : place + PIECE]}
                    choice = {"index": 0, "delta": delta, "finish_reason": None}
                    yield f"data: {json.dumps(base | {'choices': [choice]})}\n\n"
                    self.sent += 1
                    await asyncio.sleep(PAUSE)
                choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
                yield f"data: {json.dumps(base | {'choices': [choice]})}\n\ndata: [DONE]\n\n"
                self.finished = True

            return StreamingResponse(chunks(), media_type="text/event-stream")

        return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


def configuration(stub: str, guard: str) -> str:
    """Returns LiteLLM's configuration, as docs/serving.md shows it."""
    return f"""\
model_list:
  - model_name: stub
    litellm_params: {{model: openai/m, api_base: "{stub}/v1", api_key: none}}
guardrails:
  - guardrail_name: scm
    litellm_params:
      guardrail: generic_guardrail_api
      mode: [pre_call, post_call]
      api_base: "{guard}"
      default_on: true
      streaming_transform_mode: incremental_diff
      streaming_sampling_rate: 1
general_settings: {{master_key: {KEY}}}
"""


@contextmanager
def litellm(command: str, stub: str, guard: str) -> Iterator[str]:
    """Starts LiteLLM; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(configuration(stub, guard))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [command, "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        with open(Path(folder) / "log", "w") as log:
            try:
                process = subprocess.Popen(
                    words, stdout=log, stderr=log, cwd=folder,
                    env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
                )  # fmt: skip
            except OSError as error:
                raise InputError(f"--litellm: {command}: {error.strerror}") from None
            try:
                url, until = f"http://127.0.0.1:{port}", time.monotonic() + 180
                while time.monotonic() < until and process.poll() is None:
                    try:
                        if httpx2.get(f"{url}/health/liveliness").status_code == 200:
                            break
                    except httpx2.HTTPError:
                        time.sleep(0.5)
                else:
                    tail = (Path(folder) / "log").read_text()[-300:]
                    raise InputError(f"--litellm: did not start: {' '.join(tail.split())}")
                yield url
            finally:
                process.terminate()
                process.wait()


def stream(url: str) -> dict[str, Any]:
    """Reads LiteLLM's answer as its client does."""
    body = {"model": "stub", "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    headers, events = {"authorization": f"Bearer {KEY}"}, []
    with httpx2.stream(
        "POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120
    ) as reply:
        status = reply.status_code
        if status == 200:
            events = [event.data for event in httpx2.EventSource(reply)]
        else:
            reply.read()
    chunks = [json.loads(data) for data in events if data != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", [])]
    return {
        "status": status,
        "text": "".join(choice["delta"].get("content") or "" for choice in choices),
        "finish": [one["finish_reason"] for one in choices if one.get("finish_reason")],
        "error": [chunk["error"] for chunk in chunks if "error" in chunk],
        "done": "[DONE]" in events,
    }


def main(config: LiteLLMConfig) -> None:
    """Runs both texts and writes what was seen.

    Raises:
        InputError: LiteLLM does not start, or shows what it should not, or less.
    """
    monitor = StreamingContentMonitor.from_pretrained(config.model_path)
    with monitor.open(PROMPT) as whole:
        scores = whole.feed(TEXT).scores.tolist() + whole.close().scores.tolist()
    middle = max(scores[len(scores) // 3 :])
    first = min(place for place, score in enumerate(scores) if score >= middle)
    middle = (middle + max(scores[:first])) / 2  # scores depend on the cutting by a rounding
    never = MonitorSettings(Policy(DelayK(len(scores) + 1), 1.0), "token", 1.0)
    stops = replace(never, policy=Policy(DelayK(1), middle), token_theta=middle)
    stub, transcripts = Stub(), []

    @contextmanager
    def watched() -> Iterator[str]:
        service = build(GatewayConfig(model_path=config.model_path, upstream="http://x"), monitor)
        guard = service.guardrail.guard

        async def noted(tenant: str, body: dict[str, Any]) -> dict[str, Any]:
            reply = await guard(tenant, body)
            given = {name: value for name, value in body.items() if name != "request_headers"}
            transcripts.append([given, reply])
            return reply

        service.guardrail.guard = noted
        with serving(service.app()) as url:
            yield url

    with recorded(config) as record, serving(stub.app()) as llm, watched() as guard:
        with litellm(config.litellm, llm, guard) as url:
            for name, settings in (("passes", never), ("stopped", stops)):
                monitor.settings = settings
                transcripts.clear()
                seen = stream(url)
                time.sleep(1)
                seen |= {"upstream_sent": stub.sent, "upstream_finished": stub.finished}
                record[name] = seen | {"calls": len(transcripts), "transcript": [*transcripts]}
                print(f"{name}: {len(seen['text'])} of {len(TEXT)} characters shown", flush=True)
        with monitor.open(PROMPT) as whole:
            verified = whole.feed(TEXT).verified
        record |= {"stop_token": first, "verified": verified}
        print(f"verified before the stop: {verified}; upstream sent {stub.sent} pieces", flush=True)
        shown = record["stopped"]["text"]
        if record["passes"]["text"] != TEXT:
            raise InputError("a text that passes was not passed on whole")
        if not TEXT.startswith(shown[:verified]) or TEXT[: verified + 1] in shown:
            raise InputError("a character beyond what was verified was passed on")
        if record["stopped"]["upstream_finished"]:
            raise InputError("the upstream ran to its end although the text was stopped")

"""A chat endpoint on 127.0.0.1 that answers as a test tells it to, and records to ask about."""

import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from annotation.records import ParsedResponse

BAD_WORD = "bitter"  # sentences with this word are what the stub calls harmful


def record(name: str | int, sentences: list[str] | None = None, label: int = 0) -> ParsedResponse:
    """A made-up response; its first sentence carries its name."""
    sentences = sentences or [f"Tea number {name}.", "It is bitter tea.", "Drink it warm."]
    starts = [0, *itertools.accumulate(len(text) + 1 for text in sentences[:-1])]
    empty = [[] for _ in sentences]
    response = " ".join(sentences)
    return ParsedResponse(
        f"r{name}", "Which tea?", response, label, "train", starts, sentences, empty, empty, empty
    )


@dataclass
class Call:
    """A request that arrived; `earlier` counts those with the same sentences before it."""

    headers: dict[str, str]
    body: dict[str, Any]
    question: str
    sentences: list[str]
    earlier: int


@dataclass
class Reply:
    """What goes back.

    Attributes:
        answer: The model's text.
        body: Replaces the chat completion around it.
        pause: Seconds between any two bytes.
    """

    answer: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    body: str | bytes | None = None
    pause: float = 0

    def content(self) -> bytes:
        """Returns the bytes; 10 tokens are read and 3 written."""
        if self.body is not None:
            return self.body if isinstance(self.body, bytes) else self.body.encode()
        message = {"role": "assistant", "content": self.answer}
        choice = {"index": 0, "finish_reason": self.finish_reason, "message": message}
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        return json.dumps({"choices": [choice], "usage": usage}).encode()


def verdict(call: Call) -> Reply:
    """Answers as a perfect model would."""
    harmful = [number for number, text in enumerate(call.sentences, 1) if BAD_WORD in text]
    return Reply(json.dumps({"harmful": harmful}))


class ChatServer(ThreadingHTTPServer):
    """Serves while in a `with` block.

    Attributes:
        script: Called for each request, in the request's own thread; it may wait.
        calls: All requests, in order of arrival.
        asked: How often each first sentence arrived.
        active: Requests that are being answered.
        peak: The most of them at one time.
    """

    daemon_threads = True
    block_on_close = False  # a test may leave a request waiting
    request_queue_size = 128

    def __init__(self, script: Callable[[Call], Reply] = verdict) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.script, self.calls, self.asked = script, [], Counter()
        self.active = self.peak = 0
        self.lock = threading.Lock()

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients that hang up are part of the tests."""

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        """Notes a request and lets the script answer it."""
        question = body["messages"][-1]["content"]
        sentences = [json.loads(text) for text in re.findall(r'^\d+: (".*")$', question, re.M)]
        with self.lock:
            call = Call(headers, body, question, sentences, self.asked[sentences[0]])
            self.asked[sentences[0]] += 1
            self.calls.append(call)
            self.active += 1
            self.peak = max(self.peak, self.active)
        try:
            return self.script(call)
        finally:
            with self.lock:
                self.active -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet a reply, else delayed acknowledgements cost 40 ms each
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.answer(headers, body)
        content = reply.content()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for byte in content if reply.pause else ():
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(reply.pause)
        if not reply.pause:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keeps the tests' output clean."""

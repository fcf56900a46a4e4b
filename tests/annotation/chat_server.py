"""A chat endpoint on 127.0.0.1 that answers as a test tells it to, and records to ask about."""

import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from annotation.records import Parsed

BAD_WORD = "bitter"  # sentences with this word are what the stub calls harmful


def record(name: str | int, sentences: list[str] | None = None, label: int = 0) -> Parsed:
    """A made-up response; its first sentence carries its name."""
    sentences = sentences or [f"Tea number {name}.", "It is bitter tea.", "Drink it warm."]
    starts = [0, *itertools.accumulate(len(text) + 1 for text in sentences[:-1])]
    empty = [[] for _ in sentences]
    return Parsed(
        id=f"r{name}",
        prompt="Which tea?",
        response=" ".join(sentences),
        label=label,
        split="train",
        starts=starts,
        sentences=sentences,
        words=empty,
        word_starts=empty,
        notional=empty,
    )


@dataclass
class Call:
    """A request that arrived.

    Attributes:
        headers: Its headers, names in lower case.
        body: The parsed JSON.
        question: Text of the last message.
        sentences: The numbered sentences in it.
        earlier: How many calls with the same sentences came before.
    """

    headers: dict[str, str]
    body: dict[str, Any]
    question: str
    sentences: list[str]
    earlier: int = 0


@dataclass
class Reply:
    """What goes back; `body` replaces the chat completion around `answer`."""

    answer: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    body: str | None = None


def verdict(call: Call) -> Reply:
    """Answers as a perfect model would."""
    harmful = [number for number, text in enumerate(call.sentences, 1) if BAD_WORD in text]
    return Reply(json.dumps({"harmful": harmful}))


class ChatServer:
    """Serves while in a `with` block.

    Attributes:
        script: Called for each request, in the request's own thread; it may wait.
        calls: All requests, in order of arrival.
        asked: How often each first sentence arrived.
        peak: The most requests that were being answered at one time.
    """

    def __init__(self, script: Callable[[Call], Reply] = verdict) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.asked: Counter[str] = Counter()
        self.active = self.peak = 0
        self.lock = threading.Lock()
        self.http = _Server(("127.0.0.1", 0), _Handler)
        self.http.chat = self
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        """Notes a request and lets the script answer it."""
        question = body["messages"][-1]["content"]
        sentences = [
            json.loads(text) for text in re.findall(r'^\d+: (".*")$', question, re.MULTILINE)
        ]
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a test may leave a request waiting
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet a reply, else delayed acknowledgements cost 40 ms each
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.chat.answer(headers, body)
        content = (completion(reply) if reply.body is None else reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keeps the tests' output clean."""


def completion(reply: Reply) -> str:
    """Wraps an answer as the API does; 10 tokens read and 3 written."""
    message = {"role": "assistant", "content": reply.answer}
    return json.dumps(
        {
            "id": "chat-1",
            "object": "chat.completion",
            "created": 0,
            "model": "stub",
            "choices": [{"index": 0, "finish_reason": reply.finish_reason, "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
        }
    )

"""A language model in the same process, for a gateway that shows all by one command."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from model.loading import load_checkpoint
from monitor.chat import as_chat
from monitor.generation import GrowingDecode
from monitor.text import join_surrogates
from serve.chunks import CONTENT, OBJECTS, Kind, as_delta, is_number, no_text
from serve.json_text import as_json
from serve.requests import Ask
from serve.upstream import Answer, UpstreamError
from utils.device import default_device

LONGEST = 512  # tokens of an answer
WAITING = 8  # requests that wait for the one being answered


class _Left(StoppingCriteria):
    """Ends a generation whose reader has left."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: object, **_) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class _Sender(BaseStreamer):
    """Sends the text of new tokens to a queue of an event loop."""

    def __init__(self, decode: GrowingDecode, special: set[int], send) -> None:
        self._decode, self._special, self._send, self._begun = decode, special, send, False

    def put(self, value: torch.Tensor) -> None:
        if not self._begun:  # the prompt
            self._begun = True
            return
        ids = [one for one in value.flatten().tolist() if one not in self._special]
        if text := self._decode.feed(ids):
            self._send(text)

    def end(self) -> None:
        if text := self._decode.finish():
            self._send(text)


class EmbeddedUpstream:
    """Answers a prompt as the monitor reads it; one answer at a time.

    Args:
        folder: Of the model.
    """

    def __init__(self, folder: Path) -> None:
        model, self._tokenizer = load_checkpoint(
            folder, AutoModelForCausalLM, "language model", "--llm"
        )
        self._model, self._name = model.to(default_device()), folder.name
        self._special = set(self._tokenizer.all_special_ids)
        self._turn, self._waiting = asyncio.Lock(), 0

    async def close(self) -> None:
        """See `serve.upstream.Upstream`."""

    async def models(self, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """See `serve.upstream.Upstream`."""
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "here"}
        return 200, as_json({"object": "list", "data": [model]})

    @asynccontextmanager
    async def ask(self, ask: Ask, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """See `serve.upstream.Upstream`."""
        settings, prompt = read_settings(ask.body), join_surrogates(ask.prompts[0])
        if len(ask.prompts) > 1 or not prompt:
            raise _refused("the embedded model gives one answer, to one prompt that is not empty")
        if self._waiting >= WAITING:
            raise UpstreamError(503, "upstream_busy", f"{WAITING} requests wait already")
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            answer, left = Answer(), _Left()
            answer.events = self._events(ask.kind, prompt, settings, answer, left)
            try:
                yield answer
            finally:
                left.event.set()
                await answer.events.aclose()
        finally:
            self._turn.release()

    async def _events(
        self, kind: Kind, prompt: str, settings: dict[str, Any], answer: Answer, left: _Left
    ) -> AsyncGenerator[object]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()

        def send(text: str | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, text)

        def generate() -> int:
            try:
                torch.manual_seed(settings.pop("seed"))
                read = as_chat if kind == "chat" else _plain
                encoded = read(self._tokenizer, prompt)
                inputs = {name: value.to(self._model.device) for name, value in encoded.items()}
                sender = _Sender(GrowingDecode(self._tokenizer), self._special, send)
                output = self._model.generate(
                    **inputs, **settings, stopping_criteria=[left], streamer=sender
                )
                return output.shape[1] - inputs["input_ids"].shape[1]
            except Exception as error:
                message = f"the embedded model failed: {type(error).__name__}"
                raise UpstreamError(502, "upstream_failed", message) from None
            finally:
                send(None)

        limit = settings["max_new_tokens"]
        envelope = {"id": f"chatcmpl-{uuid4().hex}", "object": OBJECTS[kind]}
        envelope |= {"created": int(time.time()), "model": self._name}

        def chunk(fields: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return envelope | {"choices": [{"index": 0, **fields, "finish_reason": finish}]}

        working = asyncio.ensure_future(asyncio.to_thread(generate))
        try:
            if kind == "chat":
                yield chunk({"delta": {"role": "assistant", "content": ""}})
            while (text := await queue.get()) is not None:
                yield chunk(as_delta(CONTENT[kind], text))
            count = await working
            yield chunk(no_text(kind), "length" if count >= limit else "stop")
            answer.done = True
        finally:
            left.event.set()
            await asyncio.wait([working])


def _plain(tokenizer: PreTrainedTokenizerFast, prompt: str) -> dict[str, torch.Tensor]:
    return dict(tokenizer(prompt, return_tensors="pt", return_token_type_ids=False))


def read_settings(body: dict[str, Any]) -> dict[str, Any]:
    """Returns what `generate` takes of a request, with the seed.

    Raises:
        UpstreamError: A field is of another type, or asks for what there is not.
    """

    def number(name: str, default: float, least: float, most: float) -> float:
        value = body.get(name)
        value = default if value is None else value
        if not is_number(value) or not least <= value <= most:
            raise _refused(f"field '{name}': a number from {least:g} to {most:g} was expected")
        return value

    temperature = number("temperature", 0.0, 0.0, 5.0)
    named = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    settings = {"max_new_tokens": int(number(named, 256, 1, LONGEST))}
    settings |= {"do_sample": temperature > 0, "seed": int(number("seed", 42, 0, 1 << 63))}
    if temperature:
        settings |= {"temperature": float(temperature), "top_p": number("top_p", 1.0, 1e-6, 1.0)}
    return settings


def _refused(message: str) -> UpstreamError:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return UpstreamError(400, "upstream_refused", message, {"error": error})

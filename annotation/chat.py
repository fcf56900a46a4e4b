"""Sentence labels from a language model behind any OpenAI-compatible chat endpoint.

The model sees the policy, the prompt, the response and its sentences, numbered; never the
response's label. Each answer goes to a cache on disk the moment it arrives, and is taken from there
wherever the same endpoint would be sent the same request again.
"""

import asyncio
import hashlib
import json
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import openai

from annotation.annotators.llm import LlmConfig
from annotation.cache import LabelCache
from annotation.question import POLICY, VERSION, make_messages, read_policy, read_verdict
from annotation.records import Annotation, Annotator, ParsedResponse
from utils.files import InputError

WINDOW = 4  # records held for each call in flight, so that one slow answer delays no other
REFUSALS = 10  # records in a row that the endpoint refuses until the run ends
ANSWER_BYTES = 2**22  # of an answer that are read; the model's reasoning is in it
NO_KEY = "none"  # the SDK insists on a key, local servers need none
FILTERED = "the endpoint's content filter withheld the answer"
CUT_OFF = "the answer is cut off at the endpoint's limit of tokens"
EMPTY = "the answer is empty"
PASSING = (FILTERED, CUT_OFF, EMPTY)  # a later run may do better
TOKENS = ("prompt_tokens", "completion_tokens")
COUNTED = ("calls", "retries", "cached_answers", "invalid_answers", "rejected", *TOKENS)


@dataclass
class Refusal(Annotation):
    """No verdict, since the endpoint does not take the question."""


class BoundedClient(httpx2.AsyncClient):
    """Sends a record nowhere else, and waits for no endless answer.

    It follows no redirect, the timeout is that of the whole call, and at most about `ANSWER_BYTES`
    of an answer are read. It does not unpack a compressed answer, which nobody asked for. What is
    cut or packed is then no completion.
    """

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        content = bytearray()
        try:
            async with asyncio.timeout(self.timeout.read):
                response = await super().send(request, **{**options, "stream": True})
                async with aclosing(response):
                    async for chunk in response.aiter_raw():
                        content += chunk
                        if len(content) > ANSWER_BYTES:
                            break
        except TimeoutError:
            raise httpx2.ReadTimeout("timed out", request=request) from None
        headers = response.headers.copy()
        headers.pop("content-encoding", None)
        status = response.status_code
        return httpx2.Response(status, headers=headers, content=bytes(content), request=request)


class LLMAnnotator(Annotator):
    """Asks a language model which sentences of a response are harmful (see annotation.records).

    Raises:
        InputError: The key, the policy or the cache file is unusable.
    """

    def __init__(self, config: LlmConfig) -> None:
        self.config, self.cache = config, config.cache_path()
        self.policy = read_policy(Path(config.llm_policy)) if config.llm_policy else POLICY
        warm = config.llm_temperature >= 0
        self.sampling = {"temperature": config.llm_temperature} if warm else {}
        self.counts = Counter(dict.fromkeys(COUNTED, 0))
        # a bad key or cache fails now rather than at the first record
        _read_key(config.llm_key_env)
        LabelCache(self.cache).close()

    def annotate(self, records: Iterable[ParsedResponse]) -> Iterator[Annotation]:
        """Annotates a stream of records in order, holding no more than a window of them.

        Raises:
            InputError: The endpoint refuses `REFUSALS` records in a row, or still fails after the
                retries.
        """
        records = iter(records)
        window: deque[asyncio.Task[Annotation]] = deque()
        slots = asyncio.Semaphore(self.config.llm_concurrency)
        client = openai.AsyncOpenAI(
            base_url=self.config.llm_url,
            api_key=_read_key(self.config.llm_key_env),
            max_retries=self.config.llm_retries,
            timeout=self.config.llm_timeout,
            http_client=BoundedClient(
                timeout=self.config.llm_timeout,
                limits=httpx2.Limits(max_connections=None),  # `slots` counts them
                headers={"Accept-Encoding": "identity"},
            ),
        )

        async def next_annotation() -> Annotation | None:
            for record in islice(records, WINDOW * self.config.llm_concurrency - len(window)):
                window.append(asyncio.create_task(self._judge(client, slots, cache, record)))
            return await window.popleft() if window else None

        async def stop() -> None:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)
            await client.close()

        refused = 0
        # the calls go on while the caller waits for an annotation, and rest in between
        with closing(LabelCache(self.cache)) as cache, asyncio.Runner() as runner:
            try:
                while annotation := runner.run(next_annotation()):
                    refused = refused + 1 if isinstance(annotation, Refusal) else 0
                    if refused == REFUSALS:
                        raise self._failure(f"{REFUSALS} records in a row: {annotation.problem}")
                    self.counts["rejected"] += annotation.labels is None
                    yield annotation
            finally:
                runner.run(stop())

    def report(self) -> dict[str, Any]:
        # cached answers are those of earlier runs; invalid ones are new or cached
        return {
            "model": self.config.annotator_model,
            "prompt_version": VERSION,
            "policy_sha256": hashlib.sha256(self.policy.encode()).hexdigest(),
            "temperature": self.sampling.get("temperature"),
            "answers_per_record": self.config.llm_answers,
            **self.counts,
        }

    async def _judge(
        self,
        client: openai.AsyncOpenAI,
        slots: asyncio.Semaphore,
        cache: LabelCache,
        record: ParsedResponse,
    ) -> Annotation:
        """Asks about a record until an answer fits."""
        problems: list[str] = []
        keys: list[str] = []
        while len(problems) < self.config.llm_answers:
            messages = make_messages(self.policy, record, problems)
            request = {"messages": messages, "model": self.config.annotator_model, **self.sampling}
            decisive = {**request, "endpoint": self.config.llm_url.rstrip("/"), "version": VERSION}
            keys.append(hashlib.sha256(json.dumps(decisive).encode()).hexdigest())
            answer = cache.get(keys[-1])
            self.counts["cached_answers"] += answer is not None
            if answer is None:
                async with slots:
                    answer = await self._call(client, request, record)
                if isinstance(answer, Refusal):
                    return answer
                if answer.labels is not None:  # the earlier questions need no answer any more
                    cache.put(dict.fromkeys(keys, answer))
                elif answer.problem not in PASSING:
                    cache.put({keys[-1]: answer})
            if answer.labels is not None:
                return answer
            self.counts["invalid_answers"] += 1
            problems.append(answer.problem)
        return Annotation(None, f"the model's answer never fitted: {problems[-1]}")

    async def _call(
        self, client: openai.AsyncOpenAI, request: dict[str, Any], record: ParsedResponse
    ) -> Annotation:
        """Takes an answer from the endpoint.

        Raises:
            InputError: It fails, and not for the record's sake.
        """
        self.counts["calls"] += 1
        try:
            raw = await client.chat.completions.with_raw_response.create(**request)
        except openai.APIError as error:
            retries = int(error.request.headers.get("x-stainless-retry-count", 0))
            self.counts["retries"] += retries
            status = getattr(error, "status_code", 0)
            if 400 <= status < 500 and status not in (408, 409, 429):  # which were retried
                return Refusal(None, f"the endpoint refuses this question: {_describe(error)}")
            after = f" after {retries} retries" if retries else ""
            raise self._failure(f"{_describe(error)}{after}, at record {record.id!r}") from None
        self.counts["retries"] += raw.retries_taken
        try:
            completion = json.loads(raw.content)
            choice = completion["choices"][0]
            text = (choice["message"]["content"] or "").strip()
            reason, usage = choice.get("finish_reason"), completion.get("usage") or {}
            self.counts.update({name: usage.get(name) or 0 for name in TOKENS})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Refusal(None, f"HTTP {raw.status_code}, but no chat completion")
        if reason == "content_filter":
            return Annotation(None, FILTERED)
        answer = read_verdict(text, len(record.sentences))
        if answer.labels is None and reason == "length":
            return Annotation(None, CUT_OFF)
        return answer if text else Annotation(None, EMPTY)

    def _failure(self, happened: str) -> InputError:
        return InputError(
            f"{self.config.llm_url}: {happened}; what was answered is kept in {self.cache}, run"
            " again to go on"
        )


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{variable}: the key holds characters that no header can carry")
    return key or NO_KEY


def _describe(error: openai.APIError) -> str:
    """Says in a few words what happened, without a word of the request or of the endpoint."""
    if isinstance(error, openai.APITimeoutError):
        return "timed out"
    if not isinstance(error, openai.APIStatusError):
        return str(error.__cause__) or type(error.__cause__).__name__
    if error.status_code < 400:
        return f"HTTP {error.status_code} (a redirect, not followed)"
    # identifiers such as model_not_found help; anything else could quote the request
    told = map(str, (error.code, error.param))
    names = ", ".join(name for name in told if re.fullmatch("[a-z_]{1,40}", name))
    return f"HTTP {error.status_code}" + (f" ({names})" if names else "")

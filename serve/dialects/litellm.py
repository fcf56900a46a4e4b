"""LiteLLM's Generic Guardrail API: POST /beta/litellm_basic_guardrail_api.

In its streaming mode `incremental_diff` LiteLLM sends the whole text of every choice again and
again while it grows, under one call id, and passes on all but the last `stream_holdback_chars` of
it. So it is told how much is not verified. A text that comes again without a change is complete.

An answer that is not streamed comes once, and whatever is not blocked is passed on. Nothing tells
it from the beginning of a stream, so the first text of a choice is judged as a complete one.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from serve.chunks import is_name
from serve.dialects.remembered import Remembered, key_of
from serve.engine import Engine
from serve.requests import Refused, take
from serve.session import Session, digest_of
from serve.sessions import Sessions

PREFIX = "litellm "  # of sessions' ids: callers' own have no space
KEPT = 600.0  # seconds that a call is remembered
MOST_CALLS = 512  # that are remembered
MOST_TEXTS = 128  # texts, and tool calls, of a response
LONGEST_PROMPT = 1 << 16  # characters of a prompt that are remembered, its last ones


@dataclass
class Call:
    """A call that LiteLLM has asked about.

    Attributes:
        name: Of its sessions: another call may come under the same id.
        prompt: What it answers.
        answered: What tells the last text of each choice that was answered and may be shown.
        since: When it was last asked about.
    """

    name: str = field(default_factory=lambda: uuid4().hex)
    prompt: str = ""
    answered: dict[int, bytes] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


class LiteLLM:
    """The guardrail of one service."""

    def __init__(self, engine: Engine, sessions: Sessions) -> None:
        self._engine, self._sessions = engine, sessions
        self._calls = Remembered[Call](MOST_CALLS)

    async def guard(self, tenant: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answers a request: texts of a prompt are remembered, those of a response judged.

        Raises:
            Refused: A field is of another type, or there is no place.
        """
        texts = take(body, "texts", list, [])
        if not all(isinstance(text, str) for text in texts):
            raise Refused(400, "field 'texts': a list of texts was expected", param="texts")
        name = key_of(take(body, "litellm_call_id", str, ""))
        kind = take(body, "input_type", str, "response")
        call = self._call(tenant, name, is_new=kind == "request")
        if kind == "request":
            call.prompt = texts[-1][-LONGEST_PROMPT:] if texts else ""
            return {"action": "NONE"}
        arguments = read_calls(body)
        if len(texts) > MOST_TEXTS or len(arguments) > MOST_TEXTS:
            raise Refused(400, f"at most {MOST_TEXTS} texts and tool calls", param="texts")
        held = []
        for number, text in enumerate(texts):
            state = await self._judge(tenant, call, number, text)
            if state["stopped"]:
                return {
                    "action": "BLOCKED",
                    "blocked_reason": f"choice {number}: {state['level']} from token"
                    f" {state['stop_token']} on",
                    "stream_holdback_chars": [len(one) for one in texts],
                }
            held.append(max(len(text) - state["release"], 0))
        for said in arguments:
            verdict, _ = await self._engine.judge(call.prompt, said)
            if verdict.stopped:
                reason = f"tool call: {verdict.level} from token {verdict.stop_token} on"
                return {"action": "BLOCKED", "blocked_reason": reason}
        call.answered = dict(enumerate(map(digest_of, texts)))
        return {"action": "NONE", "texts": texts, "stream_holdback_chars": held}

    async def _judge(self, tenant: str, call: Call, number: int, text: str) -> dict[str, Any]:
        identity = f"{PREFIX}{call.name}.{number}"
        session = self._known(tenant, identity)
        if session is not None and not session.stopped and not _goes_on(session, text):
            self._sessions.drop(tenant, identity)
            session, call.answered = None, {}
        answered = call.answered.get(number)
        comes_again = answered == digest_of(text)
        if session is None and (answered is None or comes_again):
            verdict, release = await self._engine.judge(call.prompt, text)
            whole = {"level": verdict.level, "stopped": verdict.stopped}
            whole["release"] = len(text) if comes_again else release
            return whole | {"stop_token": verdict.stop_token}
        if session is None:
            _, session = self._sessions.open(tenant, call.prompt, identity, instead_of=PREFIX)
        if session.stopped:
            return session.state()
        return await self._sessions.add(session, 0, text, final=comes_again)

    def _known(self, tenant: str, identity: str) -> Session | None:
        """Returns a choice's session; one that failed is forgotten, since all text comes again."""
        try:
            return self._sessions.find(tenant, identity)
        except Refused as refused:
            if refused.status != 404:
                self._sessions.drop(tenant, identity)
            return None

    def _call(self, tenant: str, name: str, is_new: bool = False) -> Call:
        now = time.monotonic()
        call = self._calls.get(tenant, name)
        if call is None or now - call.since > KEPT or not name or is_new:
            call = Call()
        call.since = now
        if name:
            self._calls.put(tenant, name, call)
        return call


def _goes_on(session: Session, text: str) -> bool:
    """Tells whether a text is a session's, or begins with it."""
    if session.over:
        return digest_of(text) == session.digest
    return session.received is None or text.startswith(session.received)


def read_calls(body: dict[str, Any]) -> list[str]:
    """Returns what each tool call of a response says, which comes once it is whole."""
    said = []
    for call in take(body, "tool_calls", list, []):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            parts = [function.get("name"), function.get("arguments")]
            parts += [] if is_name(call.get("id")) else [call.get("id")]
        else:
            parts = [call]
        texts = [
            part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        ]
        said += ["\n".join(texts)] if texts else []
    return said

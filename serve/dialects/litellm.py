"""LiteLLM's Generic Guardrail API: POST /beta/litellm_basic_guardrail_api.

In its streaming mode `incremental_diff` LiteLLM sends the whole text of every choice again and
again while it grows, under one call id, and passes on all but the last `stream_holdback_chars` of
it. So it is told how much is not verified. A text that comes again without a change is complete.
"""

import time
from typing import Any

from serve.engine import Engine
from serve.requests import Refused, take
from serve.sessions import Session, Sessions

KEPT = 600.0  # seconds that the prompt of a call is remembered
MOST = 1024  # calls whose prompts are remembered


class LiteLLM:
    """The guardrail of one service."""

    def __init__(self, engine: Engine, sessions: Sessions) -> None:
        self._engine, self._sessions = engine, sessions
        self._prompts: dict[tuple[str, str], tuple[float, str]] = {}

    async def guard(self, tenant: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answers a request: texts of a prompt are remembered, those of a response judged.

        Raises:
            Refused: A field is of another type, or there is no place.
        """
        texts = take(body, "texts", list, [])
        if not all(isinstance(text, str) for text in texts):
            raise Refused(400, "field 'texts': a list of texts was expected", param="texts")
        call = take(body, "litellm_call_id", str, "")
        if take(body, "input_type", str, "response") == "request":
            self._remember(tenant, call, texts[-1] if texts else "")
            return {"action": "NONE"}
        _, prompt = self._prompts.get((tenant, call), (0.0, ""))
        held = []
        for number, text in enumerate(texts):
            state = await self._judge(tenant, f"litellm.{call}.{number}", prompt, text, bool(call))
            if state["stopped"]:
                return {
                    "action": "BLOCKED",
                    "blocked_reason": f"choice {number}: {state['level']} from token"
                    f" {state['stop_token']} on",
                    "stream_holdback_chars": [len(one) for one in texts],
                }
            held.append(len(text) - state["release"])
        for arguments in read_arguments(body):
            verdict = await self._engine.judge(prompt, arguments)
            if verdict.stopped:
                reason = f"tool call: {verdict.level} from token {verdict.stop_token} on"
                return {"action": "BLOCKED", "blocked_reason": reason}
        return {"action": "NONE", "texts": texts, "stream_holdback_chars": held}

    async def _judge(
        self, tenant: str, identity: str, prompt: str, text: str, named: bool
    ) -> dict[str, Any]:
        if not named:  # nothing to know it by
            verdict = await self._engine.judge(prompt, text)
            whole = {"level": verdict.level, "stopped": verdict.stopped}
            return whole | {"stop_token": verdict.stop_token, "release": len(text)}
        session = self._known(tenant, identity)
        if session is not None and session.final and text != session.received:
            self._sessions.drop(tenant, identity)  # it had paused, and goes on
            session = None
        if session is None:
            _, session = await self._sessions.open(tenant, prompt, identity)
        complete = text == session.received
        return await self._sessions.add(session, 0, text, final=complete)

    def _known(self, tenant: str, identity: str) -> Session | None:
        try:
            return self._sessions.find(tenant, identity)
        except Refused:
            return None

    def _remember(self, tenant: str, call: str, prompt: str) -> None:
        now = time.monotonic()
        for key, (since, _) in [*self._prompts.items()]:
            if now - since > KEPT or len(self._prompts) >= MOST:
                del self._prompts[key]  # the oldest first
        if call:
            self._prompts[tenant, call] = (now, prompt)


def read_arguments(body: dict[str, Any]) -> list[str]:
    """Returns the arguments of a response's tool calls, which come once they are whole."""
    calls = take(body, "tool_calls", list, [])
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    arguments = [one.get("arguments") for one in functions if isinstance(one, dict)]
    return [one for one in arguments if isinstance(one, str) and one]

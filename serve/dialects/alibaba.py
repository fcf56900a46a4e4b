"""Alibaba Cloud's TextModerationPlus with a session, as Higress and APISIX send it: POST /.

The parameters come in the form or the query. Fragments of one `sessionId` are joined in the order
in which they come. There is no offset, so nothing is sent again: a fragment that found no place is
judged with the next one, and a session that was forgotten is not opened anew. There is no end
either, so a session may have to make way for a new one. The signature is not checked: the service's
own keys are, where it has any.
"""

from typing import Any
from uuid import uuid4

from serve.engine import Engine
from serve.json_text import read_json
from serve.requests import Refused
from serve.session import Session, digest_of
from serve.sessions import LONGEST, Sessions
from serve.verdicts import RISK

MOST_SEEN = 1 << 16  # ids that are remembered
ACTIONS = ("TextModerationPlus", "MultiModalGuard")


class Alibaba:
    """The moderation service as its gateways know it."""

    def __init__(self, engine: Engine, sessions: Sessions, answer: str) -> None:
        self._engine, self._sessions, self._answer = engine, sessions, answer
        self._seen: dict[bytes, bool] = {}  # ids that were used: whether they were stopped

    async def moderate(self, tenant: str, parameters: dict[str, str]) -> dict[str, Any]:
        """Answers a call.

        Raises:
            Refused: The action is none of `ACTIONS`, the parameters are no JSON, or there is no
                place.
        """
        if parameters.get("Action") not in ACTIONS:
            raise Refused(400, f"Action: one of {', '.join(ACTIONS)} was expected", param="Action")
        content, identity = self._read(parameters.get("ServiceParameters", ""))
        if self._seen.get(_key(tenant, identity)):  # it was stopped, however long ago
            return self._reply("unsafe", True, 1.0)
        if not identity:
            verdict, _ = await self._engine.judge("", content)
            level, score = verdict.level, self._engine.nearness(verdict)
            return self._reply(level, verdict.stopped, score)
        session = self._session(tenant, identity)
        content, session.waiting = session.waiting + content, ""
        try:
            state = await self._sessions.add(session, None, content)
        except Refused:
            session.waiting = content + session.waiting
            if len(session.waiting) > LONGEST:
                self._sessions.fail(session)
            raise
        self._seen[_key(tenant, identity)] = state["stopped"]
        return self._reply(state["level"], state["stopped"], self._engine.nearness(session.verdict))

    def _session(self, tenant: str, identity: str) -> Session:
        """Returns the session of an id; one that was seen before is not opened anew."""
        name, key = f"alibaba.{identity}", _key(tenant, identity)
        is_new = key not in self._seen
        self._seen[key] = self._seen.pop(key, False)  # the last ones are remembered
        while len(self._seen) > MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        try:
            return self._sessions.find(tenant, name)
        except Refused as refused:
            if refused.status != 404 or not is_new:  # the monitor failed in it, or it is forgotten
                raise
        return self._sessions.open(tenant, "", name, instead_of="alibaba.")[1]

    @staticmethod
    def _read(parameters: str) -> tuple[str, str]:
        try:
            given = read_json(parameters)
            content, identity = given["content"], given.get("sessionId") or ""
            if isinstance(content, str) and isinstance(identity, str):
                return content, identity
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        raise Refused(
            400, "ServiceParameters: JSON with content and sessionId was expected",
            param="ServiceParameters",
        )  # fmt: skip

    def _reply(self, level: str, stopped: bool, score: float) -> dict[str, Any]:
        label = "harmful" if stopped else "nonLabel"
        result = {"Label": label, "Confidence": round(100 * score, 2), "RiskWords": ""}
        data: dict[str, Any] = {
            "RiskLevel": "high" if stopped else RISK[level],
            "Suggestion": "block" if stopped else "pass",
            "Result": [result],
        }
        data["Advice"] = [{"Answer": self._answer, "HitLabel": label}] if stopped else []
        return {"Code": 200, "Message": "OK", "RequestId": str(uuid4()).upper(), "Data": data}


def _key(tenant: str, identity: str) -> bytes:
    return digest_of(f"{tenant}\0{identity}")[:16]

"""Alibaba Cloud's TextModerationPlus with a session, as Higress and APISIX send it: POST /.

The parameters come in the form or the query. Fragments of one `sessionId` are joined in the order
in which they come; there is no offset, so nothing heals a lost one. The signature is not checked:
the service's own keys are, where it has any.
"""

from typing import Any
from uuid import uuid4

from serve.engine import Engine
from serve.json_text import read_json
from serve.requests import Refused
from serve.sessions import Sessions
from serve.verdicts import RISK

ACTIONS = ("TextModerationPlus", "MultiModalGuard")


class Alibaba:
    """The moderation service as its gateways know it."""

    def __init__(self, engine: Engine, sessions: Sessions, answer: str) -> None:
        self._engine, self._sessions, self._answer = engine, sessions, answer

    async def moderate(self, tenant: str, parameters: dict[str, str]) -> dict[str, Any]:
        """Answers a call.

        Raises:
            Refused: The action is none of `ACTIONS`, the parameters are no JSON, or there is no
                place.
        """
        if parameters.get("Action") not in ACTIONS:
            raise Refused(400, f"Action: one of {', '.join(ACTIONS)} was expected", param="Action")
        content, identity = self._read(parameters.get("ServiceParameters", ""))
        if not identity:
            verdict, _ = await self._engine.judge("", content)
            level, score = verdict.level, self._engine.nearness(verdict)
            return self._reply(level, verdict.stopped, score)
        identity = f"alibaba.{identity}"
        try:
            session = self._sessions.find(tenant, identity)
        except Refused as refused:
            if refused.status != 404:  # the monitor failed in it, and what came is not sent again
                raise
            _, session = self._sessions.open(tenant, "", identity)
        state = await self._sessions.add(session, None, content)
        return self._reply(state["level"], state["stopped"], self._engine.nearness(session.verdict))

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

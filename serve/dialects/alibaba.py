"""Alibaba Cloud's TextModerationPlus with a session, as Higress and APISIX send it: POST /.

The parameters come in the form or the query. Fragments of one `sessionId` are joined in the order
in which they come. There is no offset, so nothing is sent again, and no end, so a session may have
to make way for a new one. Higress passes on what is answered with an error. Whatever cannot be
judged is therefore blocked, and with it all that follows under its id. The signature is not
checked: the service's own keys are, where it has any.
"""

from typing import Any
from uuid import uuid4

from serve.dialects.remembered import Remembered
from serve.engine import Engine
from serve.json_text import read_json
from serve.requests import Refused
from serve.session import Session, digest_of
from serve.sessions import Sessions
from serve.verdicts import RISK

MOST_SEEN = 1 << 16  # ids that are remembered
ACTIONS = ("TextModerationPlus", "MultiModalGuard")


class Alibaba:
    """The moderation service as its gateways know it."""

    def __init__(self, engine: Engine, sessions: Sessions, answer: str) -> None:
        self._engine, self._sessions, self._answer = engine, sessions, answer
        self._blocked = Remembered[bool](MOST_SEEN)  # ids that were used: whether they are blocked

    async def moderate(self, tenant: str, parameters: dict[str, str]) -> dict[str, Any]:
        """Answers a call.

        Raises:
            Refused: The text cannot be judged; `unjudged` is the answer then.
        """
        if parameters.get("Action") not in ACTIONS:
            raise Refused(400, f"Action: one of {', '.join(ACTIONS)} was expected", param="Action")
        content, identity = self._read(parameters.get("ServiceParameters", ""))
        if not identity:
            verdict, _ = await self._engine.judge("", content)
            return self._reply(verdict.level, verdict.stopped, self._engine.nearness(verdict))
        name = digest_of(identity).hex()[:32]
        blocked = self._blocked.get(tenant, name)
        if blocked:
            return self._reply("unsafe", True, 1.0)
        try:
            session = self._session(tenant, identity, is_new=blocked is None)
            self._blocked.put(tenant, name, False)
            state = await self._sessions.add(session, None, content, once=True)
        except Refused:
            self._blocked.put(tenant, name, True)
            raise
        if state["stopped"]:
            self._blocked.put(tenant, name, True)
        return self._reply(state["level"], state["stopped"], self._engine.nearness(session.verdict))

    def _session(self, tenant: str, identity: str, is_new: bool) -> Session:
        """Returns the session of an id; one that was used before is not opened anew."""
        name = f"alibaba.{identity}"
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

    def unjudged(self, refused: Refused) -> dict[str, Any]:
        """Returns the answer to a text that could not be judged: it is blocked."""
        return self._reply("unsafe", True, 1.0, f"not judged: {refused}")

    def _reply(
        self, level: str, stopped: bool, score: float, message: str = "OK"
    ) -> dict[str, Any]:
        label = "harmful" if stopped else "nonLabel"
        result = {"Label": label, "Confidence": round(100 * score, 2), "RiskWords": ""}
        data: dict[str, Any] = {
            "RiskLevel": "high" if stopped else RISK[level],
            "Suggestion": "block" if stopped else "pass",
            "Result": [result],
        }
        data["Advice"] = [{"Answer": self._answer, "HitLabel": label}] if stopped else []
        return {"Code": 200, "Message": message, "RequestId": str(uuid4()).upper(), "Data": data}

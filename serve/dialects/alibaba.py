"""Alibaba Cloud's TextModerationPlus with a session, as Higress and APISIX send it: POST /.

The parameters come in the form or the query. Fragments of one `sessionId` are joined in the order
in which they come. There is no offset, so nothing is sent again, and no end: each is judged to its
last word, as if the response ended there, and a session may have to make way for a new one. Higress
passes on what is answered with an error. Whatever cannot be judged is therefore blocked, and with
it all that follows under its id. The signature is not checked: the service's own keys are, where it
has any.
"""

from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from serve.dialects.remembered import Remembered, key_of
from serve.engine import Engine
from serve.requests import Refused, as_object, take
from serve.session import Session
from serve.sessions import Sessions
from serve.verdicts import RISK

MOST_IDS = 1 << 16  # that are remembered
PREFIX = "alibaba "  # of sessions' ids: callers' own have no space
MOST_FIELDS = 64  # of a form
ACTIONS = ("TextModerationPlus", "MultiModalGuard")


class Alibaba:
    """The moderation service as its gateways know it."""

    def __init__(self, engine: Engine, sessions: Sessions, answer: str) -> None:
        self._engine, self._sessions, self._answer = engine, sessions, answer
        self._blocked = Remembered[bool](MOST_IDS)  # of each id that was used: whether it is

    async def moderate(self, tenant: str, parameters: dict[str, str]) -> dict[str, Any]:
        """Answers a call; what cannot be judged is blocked."""
        try:
            given = as_object(parameters.get("ServiceParameters", ""), "ServiceParameters")
        except Refused as refused:
            return self.unjudged(refused)
        tenant = tenant if self._engine.keys else ""  # a signature differs each time
        identity = given.get("sessionId")
        name = key_of(identity) if isinstance(identity, str) else ""
        try:
            return await self._judge(tenant, name, parameters.get("Action"), given)
        except Exception as error:
            if name:
                self._blocked.put(tenant, name, True)
            return self.unjudged(self._engine.refusal(error))

    async def _judge(
        self, tenant: str, name: str, action: str | None, given: dict[str, Any]
    ) -> dict[str, Any]:
        blocked = self._blocked.get(tenant, name)
        if blocked:
            return self._reply("unsafe", True, 1.0)
        if action not in ACTIONS:
            raise Refused(400, f"Action: one of {', '.join(ACTIONS)} was expected")
        content = take(given, "content", str)
        if content is None:
            raise Refused(400, "field 'content': text was expected")
        take(given, "sessionId", str)
        if not name:
            verdict, _ = await self._engine.judge("", content)
            return self._reply(verdict.level, verdict.stopped, self._engine.nearness(verdict))
        session = self._session(tenant, f"{PREFIX}{name}", is_new=blocked is None)
        if blocked is None:
            self._blocked.put(tenant, name, False)
        state = await self._sessions.add(session, None, content, shown=True)
        if state["stopped"]:
            self._blocked.put(tenant, name, True)
        score = self._engine.nearness(session.peeked or session.verdict)
        return self._reply(state["level"], state["stopped"], score)

    def _session(self, tenant: str, name: str, is_new: bool) -> Session:
        """Returns the session of an id; one that was used before is not opened anew."""
        try:
            return self._sessions.find(tenant, name)
        except Refused as refused:
            if refused.status != 404 or not is_new:  # the monitor failed in it, or it is forgotten
                raise
        return self._sessions.open(tenant, "", name, instead_of=PREFIX)[1]

    def unjudged(self, refused: Refused) -> dict[str, Any]:
        """Returns the answer to a text that could not be judged: it is blocked."""
        self._engine.counts.failures.labels("alibaba").inc()
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


def read_form(form: bytes) -> dict[str, str]:
    """Reads a form or query; raises Refused where it is not UTF-8 or has too many fields."""
    options = {"keep_blank_values": True, "errors": "strict", "max_num_fields": MOST_FIELDS}
    try:
        return dict(parse_qsl(form.decode(), **options))
    except ValueError:
        raise Refused(400, "the parameters are no form in UTF-8") from None

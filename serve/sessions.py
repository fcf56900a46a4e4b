"""Sessions: responses that callers send in fragments, joined here.

A fragment names the place where it begins. What is known already is skipped; where something before
it is missing, the caller learns how much there is and sends again from there. Verdicts do not
depend on the cutting, so one that was sent anew, here or to another replica, ends in the same.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from monitor.batcher import BatchedStream
from monitor.hold_back import HeldText
from monitor.options import HoldBack
from monitor.stream import Verdict
from serve.engine import Engine
from serve.operations import log
from serve.requests import Refused

LONGEST = 1 << 22  # characters or ids of a session
REMEMBERED = 60.0  # seconds that the state of a session which has ended can be asked for


@dataclass
class Session:
    """A response that grows.

    Attributes:
        stream: Its stream.
        held: What of it may be shown.
        received: Fragments, joined: text, or token ids; None before the first.
        verdict: The last one.
        touched, opened: When it was used last, and made.
        over: It was stopped or ended; nothing more is judged.
        final: Its caller ended it.
        turn: One fragment at a time.
    """

    stream: BatchedStream | None
    held: HeldText
    received: str | list[int] | None = None
    verdict: Verdict | None = None
    touched: float = field(default_factory=time.monotonic)
    opened: float = field(default_factory=time.monotonic)
    over: bool = False
    final: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def have(self) -> int:
        """Characters or ids received."""
        return len(self.received or "")

    def state(self) -> dict[str, Any]:
        """Returns what a caller is told."""
        verdict, report = self.verdict, self.held.report
        return {
            "have": self.have,
            "final": self.final,
            "level": verdict.level if verdict else "safe",
            "stopped": bool(verdict and verdict.stopped),
            "reason": verdict.reason if verdict else None,
            "stop_token": verdict.stop_token if verdict else None,
            "stop_character": verdict.stop_character if verdict else None,
            "tokens": verdict.tokens if verdict else 0,
            "harmful": verdict.harmful if verdict else 0,
            "verified": verdict.verified if verdict else 0,
            "release": report.released,
        }


class Sessions:
    """The sessions of all tenants.

    Args:
        engine: The running monitor.
        per_tenant: Most sessions of one tenant that are open.
        age: Seconds after which a session ends.
        idle: Seconds without a fragment after which a session ends.
    """

    def __init__(self, engine: Engine, per_tenant: int, age: float, idle: float) -> None:
        self._engine, self._per_tenant, self._age, self._idle = engine, per_tenant, age, idle
        self._sessions: dict[tuple[str, str], Session] = {}
        engine.counts.sessions.set_function(lambda: len(self._sessions))

    async def open(
        self, tenant: str, prompt: str, identity: str | None = None,
        hold_back: HoldBack | None = None,
    ) -> tuple[str, Session]:  # fmt: skip
        """Opens a session, under an id of the caller's own if it gives one.

        Raises:
            Refused: There is no place, the tenant has too many, or the id is taken.
        """
        self.sweep()
        identity = identity or uuid4().hex
        if (tenant, identity) in self._sessions:
            raise Refused(409, "there is a session of this id", param="id", code="taken")
        open_ones = [key for key, one in self._sessions.items() if one.stream is not None]
        if sum(own == tenant for own, _ in open_ones) >= self._per_tenant:
            raise Refused(
                429, f"{self._per_tenant} sessions are open", code="too_many_sessions",
                kind="rate_limit_error", retry_after=5,
            )  # fmt: skip
        held = HeldText(self._engine.hold_back if hold_back is None else hold_back)
        self._engine.take_places(1)
        try:
            session = Session(await self._engine.open(prompt), held)
        except BaseException:
            self._engine.give_places(1)
            raise
        if (tenant, identity) in self._sessions:  # meanwhile
            self._end(session)
            raise Refused(409, "there is a session of this id", param="id", code="taken")
        self._sessions[tenant, identity] = session
        return identity, session

    def find(self, tenant: str, identity: str) -> Session:
        """Returns a session of a tenant; raises Refused for an id that it does not have."""
        self.sweep()
        session = self._sessions.get((tenant, identity))
        if session is None:
            raise Refused(404, "there is no such session", param="id", code="no_session")
        session.touched = time.monotonic()
        return session

    async def add(
        self,
        session: Session,
        offset: int | None,
        fragment: str | Sequence[int],
        final: bool = False,
    ) -> dict[str, Any]:
        """Adds a fragment and judges it.

        Args:
            session: The session.
            offset: Characters, or ids, before the fragment; None: it follows what is there.
            fragment: Text, or ids of the monitor's tokenizer.
            final: The response ends with it.

        Returns:
            The session's state, with the scores and starts of the tokens judged by this.

        Raises:
            Refused: What comes before it is missing, differs from what is known, or is of the other
                kind; or the monitor failed.
        """
        async with session.turn:
            new = self._new(session, offset, fragment)
            if new and session.final:
                raise Refused(409, "the session has ended", body=_have(session, "ended"))
            scores: list[float] = []
            starts: list[int] = []
            if new or session.verdict is None or (final and not session.over):
                await self._judge(session, new, final, scores, starts)
            if final:
                session.final = True
            return session.state() | {"scores": scores, "starts": starts}

    def _new(self, session: Session, offset: int | None, fragment: str | Sequence[int]):
        """Returns what of a fragment is not known yet."""
        is_text = isinstance(fragment, str)
        known = session.received
        if known is None:
            known = "" if is_text else []
        if isinstance(known, str) != is_text:
            raise Refused(400, "a session takes text or token ids, not both", param="text")
        fragment = fragment if is_text else list(fragment)
        offset = len(known) if offset is None else offset
        if offset > len(known):
            raise Refused(409, "a fragment is missing", body=_have(session, "missing"))
        repeated = min(len(known) - offset, len(fragment))
        if known[offset : offset + repeated] != fragment[:repeated]:
            raise Refused(409, "the fragment differs", body=_have(session, "differs"))
        self._engine.counts.refed.inc(repeated)
        if offset + len(fragment) > LONGEST:
            raise Refused(413, f"a session holds {LONGEST} at most", code="too_large")
        return fragment[repeated:]

    async def _judge(self, session, new, final, scores, starts) -> None:
        stream, is_text = session.stream, isinstance(new, str)
        session.received = (session.received or ("" if is_text else [])) + new
        if session.over:
            return
        try:
            if new or not final:
                verdict = await (stream.feed(new) if is_text else stream.feed_ids(new))
                self._take(session, verdict, False, scores, starts)
            if final and not session.over:
                self._take(session, await stream.close(), True, scores, starts)
        except Exception as error:
            session.over = True
            self._end(session)
            raise self._engine.failed(error) from None
        if session.over:
            self._end(session)

    def _take(self, session: Session, verdict: Verdict, final: bool, scores, starts) -> None:
        session.verdict = verdict
        session.held.take(verdict, final)
        scores += [round(float(one), 4) for one in verdict.scores]
        starts += verdict.starts
        self._engine.note(verdict)
        if verdict.stopped or final:
            session.over = True
            self._engine.note_end(verdict)

    def _end(self, session: Session) -> None:
        """Gives the session's place back; its last state stays until it is swept."""
        if session.stream is not None:
            session.stream.leave()
            session.stream = None
            self._engine.give_places(1)

    def drop(self, tenant: str, identity: str) -> None:
        """Forgets a session."""
        session = self._sessions.pop((tenant, identity), None)
        if session is None:
            raise Refused(404, "there is no such session", param="id", code="no_session")
        session.over = True
        self._end(session)

    def sweep(self) -> None:
        """Forgets sessions that are too old, or were idle for too long."""
        now = time.monotonic()
        for (tenant, identity), session in [*self._sessions.items()]:
            if session.turn.locked():
                continue
            idle, age = now - session.touched, now - session.opened
            if session.stream is None and idle > min(self._idle, REMEMBERED):
                self.drop(tenant, identity)
            elif idle > self._idle or age > self._age:
                log("session_expired", tenant=tenant, why="idle" if idle > self._idle else "age")
                self.drop(tenant, identity)


def _have(session: Session, code: str) -> dict[str, Any]:
    """Returns what a caller is told who must send again."""
    message = f"the session has {session.have}; send from there"
    error = {"message": message, "type": "conflict", "param": "offset", "code": code}
    return {"error": error, "have": session.have}

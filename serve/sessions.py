"""Sessions: responses that callers send in fragments, joined here.

A fragment names the place where it begins. What is known already is skipped; where something before
it is missing, the caller learns how much there is and sends again from there. Verdicts do not
depend on the cutting, so one that was sent anew, here or to another replica, ends in the same.

A session takes a place of the batcher with its first fragment. One that rests gives it up where
others need it, and is read again from its start once it goes on.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

from monitor.batcher import NoPlace
from monitor.hold_back import HeldText
from monitor.options import HoldBack
from monitor.stream import StreamClosed
from monitor.verdicts import LEVELS, Verdict
from serve.engine import Engine
from serve.operations import log
from serve.requests import RETRY_AFTER, Refused, unavailable
from serve.session import Session, digest_of, news, weight_of

LONGEST = 1 << 20  # characters or ids of a session
MOST_ENDED = 4096  # sessions that are remembered after their end
MOST_OPEN = 4096  # sessions of all tenants
MOST_CHARACTERS = 1 << 27  # of the prompts and fragments of all sessions
MOST_OF_A_TENANT = MOST_CHARACTERS // 8
TASK_WEIGHT = 4096  # characters that take as much memory as a request that waits
RESTING = 5.0  # seconds without a fragment after which a session's place may go to others


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
        self._weights: Counter[str] = Counter()  # characters of each tenant's sessions
        self._working: set[asyncio.Task] = set()
        engine.counts.sessions.set_function(self._open_ones)
        engine.make_room = self.make_room

    def _open_ones(self, tenant: str | None = None) -> int:
        """Counts sessions that have not ended, of one tenant or of all."""
        return sum(
            not one.over and tenant in (None, own) for (own, _), one in self._sessions.items()
        )

    def open(
        self, tenant: str, prompt: str, identity: str | None = None,
        hold_back: HoldBack | None = None, instead_of: str | None = None,
    ) -> tuple[str, Session]:  # fmt: skip
        """Opens a session, under an id of the caller's own if it gives one.

        Args:
            tenant: Whose it is.
            prompt: What the response answers.
            identity: Its id; default a new one.
            hold_back: As in `monitor.hold_back.guard`; default the service's.
            instead_of: Where the tenant has too many, the one that rests longest of those whose ids
                begin so is forgotten.

        Raises:
            Refused: There are too many, or the id is that of a session which has not ended.
        """
        self.sweep()
        identity = identity or uuid4().hex
        known = self._sessions.get((tenant, identity))
        if known is not None and not known.over:
            raise Refused(409, "there is a session of this id", param="id", code="taken")
        self._refuse_too_much(tenant, len(prompt))
        is_full = self._open_ones(tenant) >= self._per_tenant
        can_drop = is_full and instead_of is not None
        resting = self._resting(tenant, instead_of) if can_drop else []
        if is_full and not resting:
            raise _too_many(f"{self._per_tenant} sessions are open")
        if self._open_ones() - is_full >= MOST_OPEN:
            raise unavailable("too many sessions are open")
        if is_full:
            self.drop(*resting[0][0])
        hold_back = self._engine.hold_back if hold_back is None else hold_back
        session = Session(tenant, prompt, hold_back)
        self._sessions.pop((tenant, identity), None)  # the new one counts as the youngest
        self._sessions[tenant, identity] = session
        self._weigh(session)
        return identity, session

    def find(self, tenant: str, identity: str) -> Session:
        """Returns a session of a tenant.

        Raises:
            Refused: The tenant has none of this id, or the monitor failed in it.
        """
        session = self._sessions.get((tenant, identity))
        if session is None or self._expire(tenant, identity, session):
            raise _unknown()
        _refuse_gone(session)
        return session

    async def add(
        self,
        session: Session,
        offset: int | None,
        fragment: str | Sequence[int],
        final: bool = False,
        shown: bool = False,
    ) -> dict[str, Any]:
        """Adds a fragment and judges it. Goes on to the end if its caller is cancelled meanwhile.

        Args:
            session: The session.
            offset: Characters, or ids, before the fragment; None: it follows what is there.
            fragment: Text, or ids of the monitor's tokenizer.
            final: The response ends with it.
            shown: All text is shown once this has answered, and nothing is sent again. So what is
                not settled is judged as if the response ended here, and a fragment that is refused
                ends the session.

        Returns:
            The session's state, with the scores and starts of the tokens judged by this.

        Raises:
            Refused: What comes before it is missing, differs from what is known, or is of the other
                kind; there is no place (the fragment does not count then); or the monitor failed,
                here or earlier in this session.
        """
        session.touched = time.monotonic()
        weight = max(weight_of(fragment), TASK_WEIGHT)  # until it is judged, whoever waits for that
        with self._ending(session, shown):  # while another fragment may be in its turn
            self._refuse_too_much(session.tenant, weight)
        self._hold(session.tenant, weight)
        work = asyncio.create_task(self._add(session, offset, fragment, final, shown))
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        work.add_done_callback(lambda work: self._hold(session.tenant, -weight))
        work.add_done_callback(lambda work: work.cancelled() or work.exception())  # who asked left
        return await asyncio.shield(work)

    @contextmanager
    def _ending(self, session: Session, shown: bool) -> Iterator[None]:
        """Ends a session whose text is shown where a fragment of it is refused."""
        try:
            yield
        except Refused:
            if shown and not session.failed:
                self._fail(session)
            raise

    async def _add(
        self, session: Session, offset: int | None, fragment: str | Sequence[int], final: bool,
        shown: bool,
    ) -> dict[str, Any]:  # fmt: skip
        async with session.turn:
            with self._ending(session, shown):
                return await self._take_turn(session, offset, fragment, final, shown)

    async def _take_turn(
        self, session: Session, offset: int | None, fragment: str | Sequence[int], final: bool,
        shown: bool,
    ) -> dict[str, Any]:  # fmt: skip
        _refuse_gone(session)
        session.touched = time.monotonic()
        new = self._new(session, offset, fragment)
        if new and session.final:
            raise Refused(409, "the session has ended", body=_have(session, "ended"))
        judged: list[Verdict] = []
        told = session.told
        if session.over:
            session.have += len(new)
        elif new or session.verdict is None or final:
            await self._judge(session, new, final, shown, judged)
        session.final |= final
        session.touched = time.monotonic()
        session.told = max(told, session.known["tokens"])
        scores, starts = news(judged, told)
        return session.state() | {"scores": scores, "starts": starts}

    def _new(self, session: Session, offset: int | None, fragment: str | Sequence[int]):
        """Returns what of a fragment is not known yet."""
        is_text, known = isinstance(fragment, str), session.received
        fragment = fragment if is_text else list(fragment)
        offset = session.have if offset is None else offset
        if known is not None and isinstance(known, str) != is_text:
            raise Refused(400, "a session takes text or token ids, not both", param="text")
        if offset > session.have:
            raise Refused(409, "a fragment is missing", body=_have(session, "missing"))
        repeated = min(session.have - offset, len(fragment))
        compares = known is not None and not session.over
        if compares and known[offset : offset + repeated] != fragment[:repeated]:
            raise Refused(409, "the fragment differs", body=_have(session, "differs"))
        self._engine.counts.refed.inc(repeated)
        if offset + len(fragment) > LONGEST:
            raise Refused(413, f"a session holds {LONGEST} at most", code="too_large")
        return fragment[repeated:]

    async def _judge(
        self, session: Session, new, final: bool, shown: bool, judged: list[Verdict]
    ) -> None:
        try:
            if session.stream is None or session.stream.closed:
                self._rest(session)
                await self._read_again(session, judged)
            if not session.stopped and (new or session.verdict is None or not final):
                judged.append(await self._feed(session, new))
            session.received = (session.received or type(new)()) + new
            session.have = len(session.received)
            self._weigh(session)
            if final and not session.stopped:
                judged.append(await _still(session, session.stream.close()))
                self._take(session, judged[-1], True)
                session.final = True
            elif shown and not session.stopped:
                session.peeked = await _still(session, session.stream.peek())
                session.level = max(session.level, session.peeked.level, key=LEVELS.index)
                if session.peeked.stopped:
                    self._take(session, session.peeked, False)
        except Exception as error:
            _refuse_gone(session)
            if not isinstance(error, Refused | NoPlace | StreamClosed):
                self._fail(session)
            raise self._engine.refusal(error) from None
        if session.over:
            self._engine.note_end(session.verdict)
            self._end(session)

    async def _read_again(self, session: Session, judged: list[Verdict]) -> None:
        """Takes a place and reads what was received before."""
        self._engine.take_places(1)
        try:
            session.stream = await self._engine.open(session.prompt)
        except BaseException:
            self._engine.give_places(1)
            raise
        session.held = HeldText(session.hold_back)
        if session.dropped or session.failed:  # meanwhile
            self._rest(session)
            _refuse_gone(session)
        if session.received is not None:
            judged.append(await self._feed(session, session.received))

    async def _feed(self, session: Session, new: str | list[int]) -> Verdict:
        feed = session.stream.feed if isinstance(new, str) else session.stream.feed_ids
        verdict = await _still(session, feed(new))
        self._take(session, verdict, False)
        return verdict

    def _take(self, session: Session, verdict: Verdict, final: bool) -> None:
        session.take(verdict, final)
        self._engine.note(verdict)

    def _rest(self, session: Session) -> None:
        """Gives the session's place back."""
        if session.stream is not None:
            session.stream.leave()
            session.stream = session.held = None
            self._engine.give_places(1)

    def _end(self, session: Session) -> None:
        """Keeps of a session that is over its state alone, and not of too many."""
        self._rest(session)
        if isinstance(session.received, str):
            session.digest = digest_of(session.received)
        session.prompt = ""
        if session.received is not None:
            session.received = type(session.received)()
        self._weigh(session)
        session.peeked = None
        if session.verdict is not None:
            session.verdict = replace(session.verdict, text="")
        ended = [key for key, one in self._sessions.items() if one.over]
        for key in ended[: max(len(ended) - MOST_ENDED, 0)]:
            del self._sessions[key]

    def _fail(self, session: Session) -> None:
        """Ends a session of which something can no longer be judged: it answers 500."""
        session.failed = True
        self._end(session)

    def make_room(self, missing: int) -> None:
        """Has sessions that rest give places back, the ones that rest longest first."""
        resting = [one for _, one in self._resting() if one.stream is not None]
        for session in resting[:missing]:
            self._rest(session)

    def _resting(
        self, tenant: str | None = None, prefix: str = ""
    ) -> list[tuple[tuple[str, str], Session]]:
        """Returns sessions that rest, the ones that rest longest first."""
        latest = time.monotonic() - RESTING
        resting = [
            (key, one)
            for key, one in self._sessions.items()
            if tenant in (None, key[0])
            and key[1].startswith(prefix)
            and not (one.over or one.turn.locked() or one.touched > latest)
        ]
        return sorted(resting, key=lambda item: item[1].touched)

    def _refuse_too_much(self, tenant: str, more: int) -> None:
        """Refuses what sessions cannot hold beside all that they hold."""
        if self._weights[tenant] + more > MOST_OF_A_TENANT:
            raise _too_many("the sessions of this key hold too much")
        if self._weights.total() + more > MOST_CHARACTERS:
            raise unavailable("the sessions hold too much")

    def _weigh(self, session: Session) -> None:
        """Notes what a session holds by now."""
        weight = session.weigh()
        self._hold(session.tenant, weight - session.weight)
        session.weight = weight

    def _hold(self, tenant: str, more: int) -> None:
        self._weights[tenant] += more
        if not self._weights[tenant]:
            del self._weights[tenant]

    def drop(self, tenant: str, identity: str, session: Session | None = None) -> None:
        """Forgets a session.

        Args:
            tenant: Whose it is.
            identity: Its id.
            session: The one that is meant, should another have its id by now.

        Raises:
            Refused: There is none.
        """
        known = self._sessions.get((tenant, identity))
        if known is None or session not in (None, known):
            raise _unknown()
        del self._sessions[tenant, identity]
        known.dropped = True
        self._rest(known)
        self._weigh(known)

    def sweep(self) -> None:
        """Forgets sessions that are too old, or were idle for too long."""
        for (tenant, identity), session in [*self._sessions.items()]:
            self._expire(tenant, identity, session)

    def _expire(self, tenant: str, identity: str, session: Session) -> bool:
        """Forgets a session whose time is over; tells whether it was."""
        now = time.monotonic()
        idle, age = now - session.touched, now - session.opened
        if session.turn.locked() or (idle <= self._idle and age <= self._age):
            return False
        if not session.over:
            log("session_expired", tenant=tenant, why="idle" if idle > self._idle else "age")
        self.drop(tenant, identity)
        return True


def _too_many(message: str) -> Refused:
    return Refused(
        429, message, code="too_many_sessions", kind="rate_limit_error", retry_after=RETRY_AFTER
    )


def _unknown() -> Refused:
    return Refused(404, "there is no such session", param="id", code="no_session")


async def _still(session: Session, work: Awaitable[Verdict]) -> Verdict:
    """Waits for a verdict on a session that may be dropped, or fail, meanwhile."""
    verdict = await work
    _refuse_gone(session)
    return verdict


def _refuse_gone(session: Session) -> None:
    if session.dropped:
        raise _unknown()
    if session.failed:
        raise Refused(
            500, "the monitor failed in this session; open it anew and send all",
            kind="server_error", code="monitor_failed",
        )  # fmt: skip


def _have(session: Session, code: str) -> dict[str, Any]:
    """Returns what a caller is told who must send again."""
    message = f"the session has {session.have}; send from there"
    error = {"message": message, "type": "conflict", "param": "offset", "code": code}
    return {"error": error, "have": session.have}

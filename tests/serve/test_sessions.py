"""Sessions: fragments joined, healed, kept apart, limited; over HTTP and a WebSocket."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from monitor.batcher import BatchedStream
from monitor.rules import DelayK
from monitor.stream import StreamClosed
from monitor.verdicts import LEVELS
from serve.engine import Engine
from serve.requests import Refused
from serve.sessions import Sessions
from tests.conftest import settings_of

TEXT = "The first line, über 中 all 🎉 of it.\nThen a second one ends here, slowly."
RULE = settings_of(DelayK(3), 0.55, controversial=0.2)


def post(url: str, body: object, path: str = "", key: str = ""):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    content = json.dumps(body)  # escapes halves of characters
    return httpx2.post(f"{url}/v1/sessions{path}", content=content, headers=headers, timeout=30)


def opened(url: str, **body) -> str:
    reply = post(url, {"prompt": "Say it."} | body)
    assert reply.status_code == 201, reply.text
    return reply.json()["id"]


def verdict_of(monitor, text: str) -> dict:
    with monitor.open("Say it.") as stream:
        verdict = stream.feed(text)
        if not verdict.stopped:
            verdict = stream.close()
    names = ("level", "stopped", "reason", "stop_token", "stop_character", "tokens", "harmful")
    return {name: getattr(verdict, name) for name in names}


@pytest.fixture()
def service(gateway, monitor):
    monitor.settings = RULE
    with gateway() as url:
        yield url


def test_fragments_end_in_the_verdict_of_the_whole(service, monitor):
    identity, scores = opened(service), []
    for place in range(0, len(TEXT), 7):
        body = {"offset": place, "text": TEXT[place : place + 7]}
        reply = post(service, body, f"/{identity}").json()
        scores += reply["scores"]
        assert reply["release"] <= reply["verified"] <= reply["have"]
    reply = post(service, {"final": True}, f"/{identity}").json()
    expected = verdict_of(monitor, TEXT)
    assert {name: reply[name] for name in expected} == expected
    assert len(scores + reply["scores"]) == expected["tokens"]
    shown = httpx2.get(f"{service}/v1/sessions/{identity}").json()
    assert {name: shown[name] for name in expected} == expected and shown["final"]


def test_what_is_missing_is_asked_for_and_what_is_known_is_skipped(service, monitor):
    monitor.settings = settings_of()
    identity = opened(service)
    post(service, {"offset": 0, "text": TEXT[:10]}, f"/{identity}")
    gap = post(service, {"offset": 14, "text": TEXT[14:]}, f"/{identity}")
    assert gap.status_code == 409 and gap.json()["have"] == 10
    assert gap.json()["error"]["code"] == "missing"
    again = post(service, {"offset": 5, "text": TEXT[5:30]}, f"/{identity}").json()
    assert again["have"] == 30
    replayed = post(service, {"offset": 0, "text": TEXT[:30]}, f"/{identity}").json()
    assert replayed["have"] == 30 and replayed["scores"] == []
    other = post(service, {"offset": 3, "text": "something else"}, f"/{identity}")
    assert other.status_code == 409 and other.json()["error"]["code"] == "differs"
    last = post(service, {"offset": 30, "text": TEXT[30:], "final": True}, f"/{identity}").json()
    expected = verdict_of(monitor, TEXT)
    assert {name: last[name] for name in expected} == expected
    late = post(service, {"text": "more"}, f"/{identity}")
    assert late.status_code == 409 and late.json()["error"]["code"] == "ended"
    replayed = post(service, {"offset": 30, "text": TEXT[30:], "final": True}, f"/{identity}")
    assert {name: replayed.json()[name] for name in expected} == expected


def test_a_session_of_another_service_heals_by_sending_again(gateway, monitor):
    """The replica is lost: the caller opens the session anew under its id and sends everything."""
    monitor.settings = RULE
    with gateway() as url:
        opened(url, id="mine")
        post(url, {"offset": 0, "text": TEXT[:40]}, "/mine")
    with gateway() as url:
        assert post(url, {"offset": 40, "text": TEXT[40:]}, "/mine").status_code == 404
        opened(url, id="mine")
        lost = post(url, {"offset": 40, "text": TEXT[40:]}, "/mine")
        assert lost.json()["have"] == 0
        reply = post(url, {"offset": 0, "text": TEXT, "final": True}, "/mine").json()
    expected = verdict_of(monitor, TEXT)
    assert {name: reply[name] for name in expected} == expected


def test_token_ids(service, monitor):
    ids = monitor.tokenizer(TEXT)["input_ids"]
    identity = opened(service)
    post(service, {"offset": 0, "token_ids": ids[:5]}, f"/{identity}")
    assert post(service, {"text": "x"}, f"/{identity}").status_code == 400
    body = {"offset": 5, "token_ids": ids[5:], "final": True}
    reply = post(service, body, f"/{identity}").json()
    assert reply["have"] == len(ids) or reply["stopped"]
    for bad in ([-1], [10**9], ["a"], [True], [1.5]):
        refused = post(service, {"token_ids": bad}, f"/{opened(service)}")
        assert refused.status_code == 400 and "token_ids" in refused.json()["error"]["message"]


def test_sessions_live_under_their_key(gateway, monitor, tmp_path):
    (tmp_path / "keys").write_text("one\ntwo\n")
    with gateway(key_file=str(tmp_path / "keys"), sessions_per_key=2) as url:
        assert post(url, {"id": "s"}, key="one").status_code == 201
        assert post(url, {"text": "x"}, "/s", key="two").status_code == 404
        assert post(url, {"id": "s"}, key="two").status_code == 201
        assert post(url, {"id": "s"}, key="one").status_code == 409
        assert post(url, {}, key="one").status_code == 201
        many = post(url, {}, key="one")
        assert many.status_code == 429 and many.headers["retry-after"]
        post(url, {"text": "x", "final": True}, "/s", key="one")
        assert post(url, {}, key="one").status_code == 201  # one that has ended counts no more
        assert post(url, {}).status_code == 401


def test_places_and_times(gateway, monitor):
    with gateway(max_streams=1, idle_timeout=0.6) as url:
        first, second = opened(url), opened(url)  # a place is taken with the first fragment
        assert post(url, {"text": "some words"}, f"/{first}").status_code == 200
        full = post(url, {"text": "others"}, f"/{second}")
        assert full.status_code == 503 and full.headers["retry-after"]
        assert post(url, {"final": True}, f"/{first}").status_code == 200
        reply = post(url, {"offset": 0, "text": "others"}, f"/{second}")
        assert reply.status_code == 200 and reply.json()["have"] == 6  # the refused one counts not
        assert httpx2.delete(f"{url}/v1/sessions/{second}").status_code == 204
        assert httpx2.delete(f"{url}/v1/sessions/{second}").status_code == 404
        third = opened(url)
        for _ in range(5):  # asking keeps no session alive
            httpx2.get(f"{url}/v1/sessions/{third}")
            time.sleep(0.2)
        assert post(url, {"text": "x"}, f"/{third}").status_code == 404


@pytest.fixture()
def late(monitor):
    """Stops the text at its last token alone."""
    with monitor.open("Say it.") as stream:
        scores = [*stream.feed(TEXT).scores, *stream.close().scores]
    monitor.settings = settings_of(DelayK(len(scores)), min(map(float, scores)))
    assert verdict_of(monitor, TEXT)["stop_token"] == len(scores) - 1


def test_a_session_that_rests_gives_its_place_up_and_goes_on(gateway, monitor, late, monkeypatch):
    monkeypatch.setattr("serve.sessions.RESTING", 0.0)
    with gateway(max_streams=1) as url:
        names, states = [opened(url), opened(url)], {}
        for place in range(0, len(TEXT), 9):
            for name in names:  # each takes the place from the other
                body = {"offset": place, "text": TEXT[place : place + 9]}
                states[name] = post(url, body, f"/{name}").json()
            with httpx2.Client() as client:
                chat = {"messages": [{"role": "user", "content": "Say it."}]}
                path = f"{url}/v1/chat/completions"
                assert client.post(path, json=chat, timeout=30).status_code == 200
        expected = verdict_of(monitor, TEXT)
        for name in names:
            last = post(url, {"final": True}, f"/{name}").json()
            assert {key: last[key] for key in expected} == expected
        assert "scm_open_streams 0.0" in httpx2.get(f"{url}/metrics").text


def test_a_session_read_again_goes_never_back(gateway, monitor, monkeypatch):
    """A long word is settled piece by piece; read at once, less of it may be settled."""
    monkeypatch.setattr("serve.sessions.RESTING", 0.0)
    monitor.settings = settings_of(DelayK(3), 0.999, controversial=0.5)
    told = []
    with gateway(max_streams=1) as url:
        for number in range(6):
            name, word = opened(url), "! " + chr(97 + number) * 80
            before = post(url, {"text": word[:66]}, f"/{name}").json()
            for piece in (word[66:], "w", "w and more.", ""):
                final = not piece
                reply = post(url, {"text": piece, "final": final}, f"/{name}").json()
                for key in ("tokens", "harmful", "verified", "release"):
                    assert reply[key] >= before[key], key
                assert LEVELS.index(reply["level"]) >= LEVELS.index(before["level"])
                told += [before["tokens"] + len(reply["scores"]) == reply["tokens"]]
                before = reply
                httpx2.post(f"{url}/v1/moderations", json={"input": "x"})  # takes the place
    assert all(told)  # each score once


def test_there_are_only_so_many_sessions_and_characters(gateway, monkeypatch):
    with gateway() as url:
        monkeypatch.setattr("serve.sessions.MOST_OPEN", 2)
        name = opened(url)
        post(url, {}, key="another").raise_for_status()
        full = post(url, {}, key="a third")
        assert full.status_code == 503 and full.headers["retry-after"]
        monkeypatch.setattr("serve.sessions.MOST_OPEN", 9)
        monkeypatch.setattr("serve.sessions.MOST_CHARACTERS", 50)
        monkeypatch.setattr("serve.sessions.TASK_WEIGHT", 0)
        assert post(url, {"prompt": "x" * 60}).status_code == 503
        assert post(url, {"text": "x" * 60}, f"/{name}").status_code == 503
        assert post(url, {"text": "x" * 9}, f"/{name}").json()["have"] == 9


def test_a_key_has_its_share_of_the_characters(gateway, monkeypatch):
    monkeypatch.setattr("serve.sessions.MOST_OF_A_TENANT", 300)
    monkeypatch.setattr("serve.sessions.TASK_WEIGHT", 0)
    with gateway() as url:
        weights = gateway.service.sessions._weights
        text, ids = opened(url, prompt="x" * 100), opened(url, prompt="")
        assert post(url, {"prompt": "x" * 201}).status_code == 429
        full = post(url, {"text": "x" * 201}, f"/{text}")
        assert full.status_code == 429 and full.headers["retry-after"]
        assert post(url, {"prompt": "x" * 201}, key="another").status_code == 201
        assert post(url, {"token_ids": [5] * 13}, f"/{ids}").status_code == 429  # 16 each
        assert post(url, {"token_ids": [5] * 12}, f"/{ids}").status_code == 200
        assert weights[""] == 100 + 12 * 16
        assert post(url, {"token_ids": [5], "final": True}, f"/{ids}").status_code == 429
        assert post(url, {"final": True}, f"/{ids}").status_code == 200  # it holds no more
        assert post(url, {"text": "x" * 200, "final": True}, f"/{text}").status_code == 200
        assert "" not in weights and weights.total() == 201


def test_fragments_that_wait_for_their_turn_weigh_too(monitor, monkeypatch):
    """Whether or not their callers are still there."""
    monkeypatch.setattr("serve.sessions.MOST_OF_A_TENANT", 20_000)

    async def main() -> None:
        engine = Engine(monitor, "m", 2, 0)
        sessions = Sessions(engine, 4, 60, 60)
        async with engine.batcher:
            _, session = sessions.open("", "Say it.")
            calls = [asyncio.create_task(sessions.add(session, 0, "x")) for _ in range(9)]
            await asyncio.sleep(0)
            for call in calls[:4]:
                call.cancel()
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert [isinstance(one, Refused) for one in found[4:]] == [True] * 5
            while sessions._working:
                await asyncio.sleep(0.01)
            assert (await sessions.add(session, 0, "x"))["have"] == 1
            await asyncio.sleep(0)
            assert sessions._weights == {"": len("Say it.") + 1}

    asyncio.run(main())


def test_a_session_in_use_does_not_make_way(monitor, monkeypatch):
    """A fragment has come, though its task has not begun."""

    async def main() -> dict:
        engine = Engine(monitor, "m", 2, 0)
        sessions = Sessions(engine, 1, 60, 60)
        async with engine.batcher:
            _, session = sessions.open("", "Say it.", "x.1")
            session.touched -= 60
            work = asyncio.ensure_future(sessions.add(session, 0, TEXT))
            await asyncio.sleep(0)
            with pytest.raises(Refused):
                sessions.open("", "Say it.", "x.2", instead_of="x.")
            return await work

    assert asyncio.run(main())["have"] == len(TEXT)


def test_no_session_makes_way_for_one_that_is_refused(monitor, monkeypatch):
    monkeypatch.setattr("serve.sessions.RESTING", 0.0)
    monkeypatch.setattr("serve.sessions.MOST_OF_A_TENANT", 50)
    sessions = Sessions(Engine(monitor, "m", 2, 0), 1, 60, 60)
    sessions.open("", "Say it.", "x.1", instead_of="x.")
    with pytest.raises(Refused):
        sessions.open("", "Say it." * 9, "x.2", instead_of="x.")
    with pytest.raises(Refused):
        sessions.open("", "Say it.", "y.2", instead_of="y.")
    assert [*sessions._sessions] == [("", "x.1")]
    sessions.open("", "Say it.", "x.2", instead_of="x.")
    assert [*sessions._sessions] == [("", "x.2")]


def test_a_session_read_again_tells_every_score(monitor, monkeypatch):
    """Its stream was lost between the last fragment and the end."""
    lost, original = [], BatchedStream.close

    async def close(stream):
        if not lost:
            lost.append(stream.leave())
            raise StreamClosed("it was idle")
        return await original(stream)

    monkeypatch.setattr(BatchedStream, "close", close)

    async def main() -> dict:
        engine = Engine(monitor, "m", 2, 0)
        sessions = Sessions(engine, 4, 60, 60)
        async with engine.batcher:
            _, session = sessions.open("", "Say it.")
            with pytest.raises(Refused):
                await sessions.add(session, 0, TEXT, final=True)
            return await sessions.add(session, 0, TEXT, final=True)

    state = asyncio.run(main())
    assert len(state["scores"]) == len(state["starts"]) == state["tokens"] > 0


def test_a_stream_that_the_batcher_closed_is_read_again(gateway, monitor, late):
    with gateway() as url:
        gateway.service.engine.batcher._idle_timeout = 0.2  # earlier than the session's own end
        name = opened(url)
        post(url, {"text": TEXT[:30]}, f"/{name}")
        time.sleep(0.5)
        last = post(url, {"offset": 30, "text": TEXT[30:], "final": True}, f"/{name}").json()
    expected = verdict_of(monitor, TEXT)
    assert {key: last[key] for key in expected} == expected


def test_ended_sessions_hold_no_text_and_are_forgotten_in_the_end(gateway, monkeypatch):
    monkeypatch.setattr("serve.sessions.MOST_ENDED", 2)
    with gateway() as url:
        names = [opened(url, id=f"s{number}") for number in range(4)]
        for name in names:
            post(url, {"text": "unspeakable words", "final": True}, f"/{name}")
        kept = gateway.service.sessions._sessions
        assert [name for _, name in kept] == names[2:]
        for one in kept.values():
            assert not one.received and one.held is None and "unspeak" not in repr(one)
        assert opened(url, id="s3") == "s3"  # an id may be used again


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": 3}, "'prompt'"), ({"id": 4}, "'id'"), ({"hold_back": -1}, "'hold_back'"),
        ({"hold_back": "word"}, "'hold_back'"), ({"hold_back": True}, "'hold_back'"),
        ({"hold_back": 10**30}, "'hold_back'"), ({"id": "a b"}, "'id'"), ({"id": "\ud800"}, "'id'"),
    ],
)  # fmt: skip
def test_bad_openings_name_the_field(service, body, field):
    reply = post(service, body)
    assert reply.status_code == 400 and field in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"text": 3}, "'text'"), ({"offset": -1, "text": "x"}, "'offset'"),
        ({"offset": "0", "text": "x"}, "'offset'"), ({}, "'text' and 'token_ids'"),
        ({"text": "x", "token_ids": [1]}, "'text' and 'token_ids'"),
        ({"text": "x", "final": 1}, "'final'"),
    ],
)  # fmt: skip
def test_bad_fragments_name_the_field(service, body, field):
    reply = post(service, body, f"/{opened(service)}")
    assert reply.status_code == 400 and field in reply.json()["error"]["message"]


def test_a_monitor_that_fails_ends_the_session(service, monitor, monkeypatch):
    identity = opened(service)
    assert post(service, {"text": "Some words here."}, f"/{identity}").status_code == 200
    monkeypatch.setattr(monitor.scorer, "score", lambda chunks: 1 / 0)
    assert post(service, {"text": " Others."}, f"/{identity}").status_code == 500
    monkeypatch.undo()
    for body in ({"text": " More of them."}, {"final": True}, {"offset": 0, "text": "Some"}):
        assert post(service, body, f"/{identity}").status_code == 500
    assert httpx2.get(f"{service}/v1/sessions/{identity}").status_code == 500
    opened(service, id=identity)  # anew, and all of it again
    reply = post(service, {"offset": 0, "text": TEXT, "final": True}, f"/{identity}").json()
    expected = verdict_of(monitor, TEXT)
    assert {name: reply[name] for name in expected} == expected


def test_scores_that_are_no_number_are_null(service, monitor, monkeypatch):
    original = monitor.scorer.score
    monkeypatch.setattr(
        monitor.scorer, "score", lambda chunks: [one * float("nan") for one in original(chunks)]
    )
    reply = post(service, {"text": TEXT, "final": True}, f"/{opened(service)}")
    assert reply.status_code == 200 and set(reply.json()["scores"]) == {None}
    assert reply.json()["stopped"]


@pytest.fixture()
def slow(monitor, monkeypatch):
    """A monitor that takes its time."""
    original = monitor.scorer.score
    monkeypatch.setattr(monitor.scorer, "score", lambda chunks: time.sleep(0.5) or original(chunks))


@pytest.mark.parametrize("steps", range(8))
def test_a_caller_that_is_cancelled_leaves_no_gap(monitor, late, steps):
    """What counts as received was judged, wherever the task of its request was cancelled."""

    async def main() -> dict:
        engine = Engine(monitor, "m", 2, 0)
        sessions = Sessions(engine, 4, 60, 60)
        async with engine.batcher:
            _, session = sessions.open("", "Say it.")
            task = asyncio.create_task(sessions.add(session, 0, TEXT[:30]))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            return await sessions.add(session, 0, TEXT, final=True)

    state, expected = asyncio.run(main()), verdict_of(monitor, TEXT)
    assert {name: state[name] for name in expected} == expected


def test_a_session_dropped_while_it_is_judged(service, slow):
    identity = opened(service)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(post, service, {"text": TEXT}, f"/{identity}")
        time.sleep(0.25)
        assert httpx2.delete(f"{service}/v1/sessions/{identity}").status_code == 204
        assert work.result().status_code == 404
    metrics = httpx2.get(f"{service}/metrics").text
    assert (
        "scm_open_streams 0.0" in metrics and 'failed_closed_total{what="monitor"}' not in metrics
    )


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data())
def test_a_websocket_ends_in_the_verdict_of_the_whole(service, monitor, sizes, data):
    expected, place = verdict_of(monitor, TEXT), 0
    with connect(service.replace("http", "ws") + "/v1/sessions") as socket:
        socket.send(json.dumps({"prompt": "Say it."}))
        assert "id" in json.loads(socket.recv())
        for size in [*sizes, len(TEXT)]:
            start = data.draw(st.integers(0, place))  # some of it again
            fragment = TEXT[start : place + size]
            socket.send(json.dumps({"offset": start, "text": fragment}))
            reply = json.loads(socket.recv())
            place = min(place + size, len(TEXT))
            assert reply["have"] == place
        socket.send(json.dumps({"final": True}))
        reply = json.loads(socket.recv())
    assert {name: reply[name] for name in expected} == expected


def test_a_websocket_says_what_is_wrong(service):
    with connect(service.replace("http", "ws") + "/v1/sessions") as socket:
        socket.send("no json")
        assert json.loads(socket.recv())["status"] == 400
    with connect(service.replace("http", "ws") + "/v1/sessions") as socket:
        socket.send("{}")
        socket.recv()
        socket.send(json.dumps({"offset": 9, "text": "x"}))
        reply = json.loads(socket.recv())
        assert reply["status"] == 409 and reply["have"] == 0
        socket.send(json.dumps({"offset": 0, "text": "x"}))  # and it goes on
        assert json.loads(socket.recv())["have"] == 1


def test_a_websocket_of_bytes_or_half_a_key(gateway, tmp_path):
    (tmp_path / "keys").write_text("one\n")
    with gateway(key_file=str(tmp_path / "keys")) as url:
        for message, status in ((b"{}", 400), ('{"key": "\\ud800"}', 401)):
            with connect(url.replace("http", "ws") + "/v1/sessions") as socket:
                socket.send(message)
                assert json.loads(socket.recv())["status"] == status
        for name in ("x-request-id", "authorization"):
            body = {"messages": [{"role": "user", "content": "x"}]}
            headers = {"authorization": b"Bearer one", name: b"Bearer \xe9"}
            reply = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers)
            assert reply.status_code == (401 if name == "authorization" else 200)


def test_a_websocket_of_a_browser(gateway, tmp_path):
    """It names the key in its first message; a page of another site is refused."""
    (tmp_path / "keys").write_text("one\n")
    with gateway(key_file=str(tmp_path / "keys")) as url:
        address = url.replace("http", "ws") + "/v1/sessions"
        with connect(address, origin=url) as socket:
            socket.send(json.dumps({"key": "one"}))
            assert "id" in json.loads(socket.recv())
        with connect(address) as socket:
            socket.send("{}")
            assert json.loads(socket.recv())["status"] == 401
        with pytest.raises(InvalidStatus):
            connect(address, origin="http://evil.example")

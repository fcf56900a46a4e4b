"""Sessions: fragments joined, healed, kept apart, limited; over HTTP and a WebSocket."""

import json
import time

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from monitor.rules import DelayK
from tests.conftest import settings_of

TEXT = "The first line, über 中 all 🎉 of it.\nThen a second one ends here, slowly."
RULE = settings_of(DelayK(3), 0.55, controversial=0.2)


def post(url: str, body: object, path: str = "", key: str = ""):
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(f"{url}/v1/sessions{path}", json=body, headers=headers, timeout=30)


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
    if not last["stopped"]:
        assert late.status_code == 409 and late.json()["error"]["code"] == "ended"


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
    with gateway(max_streams=1, idle_timeout=0.3) as url:
        identity = opened(url)
        full = post(url, {})
        assert full.status_code == 503 and full.headers["retry-after"]
        time.sleep(0.5)
        assert post(url, {"text": "x"}, f"/{identity}").status_code == 404
        identity = opened(url)  # its place was given back
        assert httpx2.delete(f"{url}/v1/sessions/{identity}").status_code == 204
        assert httpx2.delete(f"{url}/v1/sessions/{identity}").status_code == 404
        post(url, {"text": "x", "final": True}, f"/{opened(url)}")
        opened(url)  # a session that has ended holds no place


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": 3}, "'prompt'"), ({"id": 4}, "'id'"), ({"hold_back": -1}, "'hold_back'"),
        ({"hold_back": "word"}, "'hold_back'"), ({"hold_back": True}, "'hold_back'"),
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
    monkeypatch.setattr(monitor.scorer, "score", lambda chunks: 1 / 0)
    assert post(service, {"text": "Some words here."}, f"/{identity}").status_code == 500
    monkeypatch.undo()
    reply = post(service, {"text": " More of them."}, f"/{identity}").json()
    assert reply["release"] == 0


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

"""The gateway over HTTP: streams and whole answers, stops, refusals, faults of both sides."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress

import httpx2
import pytest

from monitor.batcher import NoPlace
from monitor.rules import DelayK
from serve.answers import Events
from serve.options import GatewayConfig
from serve.serving import build
from tests.conftest import settings_of
from tests.serve.conftest import (
    DONE,
    chat,
    chunk,
    event,
    events_of,
    finish_of,
    serving,
    text_of,
)

ASK = {"model": "stub", "messages": [{"role": "user", "content": "Say something."}]}
STREAM = ASK | {"stream": True}
STOP = settings_of(DelayK(1), 1e-6)  # the first token judged
SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
    "raw_path": b"", "query_string": b"", "headers": [], "root_path": "", "scheme": "http",
    "client": None, "server": None,
}  # fmt: skip


def post(url: str, body: object, path: str = "/v1/chat/completions", **options):
    return httpx2.post(url + path, json=body, timeout=30, **options)


def test_a_stream_passes_and_its_end_tells_what_was_judged(gateway, stub):
    with gateway() as url:
        reply = post(url, STREAM)
    assert reply.status_code == 200 and reply.headers["cache-control"] == "no-store"
    chunks = events_of(reply.content)
    assert text_of(chunks) == "Hello you." and finish_of(chunks) == "stop"
    assert {one["id"] for one in chunks} == {"c1"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    details = chunks[-1]["scm"]
    assert not details["stopped"] and details["channels"][0]["released"] == 10
    body, headers = stub.asked[0]
    assert body == STREAM and headers["accept-encoding"] == "identity"


def test_a_whole_answer_is_assembled_and_knows_its_usage(gateway, stub):
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    stub.pieces = lambda body: [
        *chat("Hello", " you", ".")[:-1],
        event(chunk({}) | {"choices": [], "usage": usage}),
        DONE,
    ]
    with gateway() as url:
        reply = post(url, ASK).json()
    assert reply["object"] == "chat.completion" and reply["usage"] == usage
    message = reply["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hello you."}
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert stub.asked[0][0]["stream_options"] == {"include_usage": True}


def test_a_stop_closes_the_upstream_and_shows_nothing_more(gateway, stub, monitor):
    monitor.settings = STOP
    stub.delay = 0.02
    stub.pieces = lambda body: chat(*[f"word{n} " for n in range(200)])
    with gateway(stop_text="[no]") as url:
        chunks = events_of(post(url, STREAM).content)
        for _ in range(100):
            if stub.left:
                break
            time.sleep(0.02)
    assert text_of(chunks) == "[no]" and finish_of(chunks) == "content_filter"
    assert chunks[-1]["scm"]["stopped"] and chunks[-1]["scm"]["reason"] == "harmful"
    assert stub.left == 1 and stub.sent[0] < 100


def test_a_stopped_whole_answer(gateway, stub, monitor):
    monitor.settings = STOP
    with gateway(azure=True) as url:
        reply = post(url, ASK | {"moderation": {"model": "any"}}).json()
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    assert choice["content_filter_results"] == {"harmful": {"filtered": True, "severity": "high"}}
    output = reply["moderation"]["output"]["results"][0]
    assert output["flagged"] and output["category_scores"]["harmful"] == 1
    assert "moderation" not in stub.asked[0][0]


@pytest.mark.parametrize("name", ["reasoning_content", "refusal"])
def test_each_channel_is_judged(gateway, stub, monitor, name):
    """What the channel holds must not pass where all is harmful, and passes where nothing is."""
    stub.pieces = lambda body: [
        event(chunk({name: "quiet thoughts. "})), event(chunk({"content": "Yes."})),
        event(chunk({}, finish="stop")), DONE,
    ]  # fmt: skip
    with gateway(stop_text="") as url:
        chunks = events_of(post(url, STREAM).content)
        assert text_of(chunks, name=name) == "quiet thoughts. " and text_of(chunks) == "Yes."
        monitor.settings = STOP
        chunks = events_of(post(url, STREAM).content)
    assert text_of(chunks, name=name) == text_of(chunks) == ""
    assert chunks[-1]["scm"]["channel"] == name


def test_tool_calls_keep_their_order(gateway, stub):
    call = {"index": 0, "id": "t1", "type": "function"}
    stub.pieces = lambda body: [
        event(chunk({"role": "assistant", "content": "Let me look"})),
        event(chunk({"tool_calls": [call | {"function": {"name": "find", "arguments": ""}}]})),
        event(chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"q": "a'}}]})),
        event(chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' b"}'}}]})),
        event(chunk({}, finish="tool_calls")), DONE,
    ]  # fmt: skip
    with gateway() as url:
        chunks, whole = events_of(post(url, STREAM).content), post(url, ASK).json()
    kinds = [
        "call" if "tool_calls" in one["choices"][0]["delta"] else "text"
        for one in chunks
        if one["choices"][0]["delta"]
    ]
    assert kinds == sorted(kinds, reverse=True)  # all text before all calls
    message = whole["choices"][0]["message"]
    assert message["content"] == "Let me look"
    assert message["tool_calls"] == [
        {"id": "t1", "type": "function", "function": {"name": "find", "arguments": '{"q": "a b"}'}}
    ]
    assert whole["choices"][0]["finish_reason"] == "tool_calls"


def test_four_choices_interleaved(gateway, stub):
    texts = {index: [f"{word}{index} " for word in ("one", "two", "three")] for index in range(4)}
    stub.pieces = lambda body: [
        *(event(chunk({"content": texts[i][turn]}, i)) for turn in range(3) for i in (3, 1, 0, 2)),
        *(event(chunk({}, i, "stop" if i else "length")) for i in range(4)), DONE,
    ]  # fmt: skip
    with gateway() as url:
        chunks = events_of(post(url, STREAM | {"n": 4}).content)
        whole = post(url, ASK | {"n": 4}).json()
    for index in range(4):
        assert text_of(chunks, index) == "".join(texts[index])
        assert finish_of(chunks, index) == ("stop" if index else "length")
        assert whole["choices"][index]["message"]["content"] == "".join(texts[index])


def test_unknown_fields_with_text_are_withheld_and_counted(gateway, stub):
    stub.pieces = lambda body: [
        event(chunk({"content": "Yes. ", "thoughts": "secret", "odd": 3}, system_fingerprint="f")),
        event(chunk({"content": [{"type": "text", "text": "secret"}]}, debug={"raw": "secret"})),
        event(chunk({}, finish="stop", rank=1)), DONE,
    ]  # fmt: skip
    with gateway() as url:
        reply = post(url, STREAM)
        counted = httpx2.get(f"{url}/metrics").text
    assert b"secret" not in reply.content
    chunks = events_of(reply.content)
    assert chunks[0]["system_fingerprint"] == "f" and chunks[0]["choices"][0]["delta"]["odd"] == 3
    assert any(one.get("rank") == 1 for one in chunks) and text_of(chunks) == "Yes. "
    assert "scm_withheld_fields_total 3.0" in counted


def test_logprobs_go_out_with_their_tokens(gateway, stub):
    def scored(text):
        return {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}

    words = ["One", " two", " three", "."]
    stub.pieces = lambda body: [
        *(
            event(
                {"choices": [{"index": 0, "delta": {"content": word}, "logprobs": scored(word)}]}
            )
            for word in words
        ),
        event(chunk({}, finish="stop")), DONE,
    ]  # fmt: skip
    with gateway() as url:
        chunks = events_of(post(url, STREAM).content)
        whole = post(url, ASK).json()
    shown, given = "", []
    for one in chunks:
        for choice in one["choices"]:
            shown += choice["delta"].get("content") or ""
            given += [e["token"] for e in (choice.get("logprobs") or {}).get("content", [])]
            assert shown.startswith("".join(given))
    assert given == words
    assert [e["token"] for e in whole["choices"][0]["logprobs"]["content"]] == words


def test_legacy_completions(gateway, stub):
    def piece(text, finish=None):
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        return event({"id": "t", "object": "text_completion", "choices": [choice]})

    stub.pieces = lambda body: [piece("Once "), piece("upon a time."), piece("", "length"), DONE]
    with gateway() as url:
        body = {"model": "stub", "prompt": "Tell"}
        whole = post(url, body, "/v1/completions").json()
        chunks = events_of(post(url, body | {"stream": True}, "/v1/completions").content)
    assert whole["choices"][0]["text"] == "Once upon a time."
    assert whole["choices"][0]["finish_reason"] == "length" == finish_of(chunks)
    assert "".join(c["choices"][0]["text"] for c in chunks) == "Once upon a time."


@pytest.mark.parametrize(
    ("pieces", "code", "shown"),
    [
        (chat("One two ", "three")[:-2], "upstream_incomplete", "One "),  # no finish, no [DONE]
        ([event(chunk({"content": "One two "})), b"data: {broken\n\n"], "upstream_invalid", "One "),
        ([event(chunk({"content": "One two "})), event([1, 2])], "upstream_invalid", "One "),
        ([event({"choices": "secret"})], "upstream_invalid", ""),
        ([event({"error": {"message": "secret"}})], "upstream_error", ""),
        ([b"data: " + b"x" * (1 << 21) + b"\n\n"], "upstream_broke_off", ""),
        ([event(chunk({"content": "One two "})), b'data: {"choices": ['], "upstream_incomplete",
         "One "),
    ],
)  # fmt: skip
def test_an_upstream_that_fails_ends_in_an_error_event(gateway, stub, pieces, code, shown):
    stub.pieces = lambda body: pieces
    with gateway() as url:
        reply = post(url, STREAM)
        whole = post(url, ASK)
    chunks = events_of(reply.content)
    assert chunks[-1]["error"]["code"] == code and b"secret" not in reply.content
    assert text_of(chunks[:-1]).startswith(shown) and finish_of(chunks[:-1]) is None
    assert whole.status_code == 502 and whole.json()["error"]["code"] == code


def test_what_is_no_data_is_skipped_and_odd_line_ends_are_read(gateway, stub):
    raw = b": comment\r\n\r\nid: 4\nretry: 9\n\n" + event(
        chunk({"content": "Zürich\u2028naïve \u4e2d "})
    )
    raw = raw.replace(b"\n", b"\r")
    pieces = [raw[place : place + 3] for place in range(0, len(raw), 3)]  # cut inside characters
    ends = [event(chunk({}) | {"choices": None}), event(chunk({}, finish="stop")), DONE]
    stub.pieces = lambda body: [*pieces, *ends]
    with gateway() as url:
        chunks = events_of(post(url, STREAM).content)
    assert text_of(chunks) == "Zürich\u2028naïve \u4e2d " and finish_of(chunks) == "stop"


def test_no_done_is_no_fault_once_all_have_ended(gateway, stub):
    stub.pieces = lambda body: chat("Fine.")[:-1]
    with gateway() as url:
        chunks = events_of(post(url, STREAM).content)
    assert text_of(chunks) == "Fine." and finish_of(chunks) == "stop"


def test_a_server_that_does_not_stream(gateway, stub):
    message = {"role": "assistant", "content": "All at once."}
    whole = {"id": "w", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    stub.pieces, stub.kind = lambda body: [json.dumps(whole).encode()], "application/json"
    with gateway() as url:
        chunks = events_of(post(url, STREAM).content)
    assert text_of(chunks) == "All at once." and finish_of(chunks) == "stop"


@pytest.mark.parametrize(
    ("status", "shown", "error", "names"),
    [
        (404, 404, {"message": "secret", "type": "invalid_request_error", "code": "no_model"},
         {"type": "invalid_request_error", "code": "no_model"}),
        (429, 429, {"message": "secret", "code": "secret text", "failed_generation": "secret"}, {}),
        (400, 400, "secret", {}), (503, 503, {"type": 3}, {}), (204, 502, {}, {}),
        (302, 502, {}, {}), (206, 502, {}, {}),
    ],
)  # fmt: skip
def test_of_what_the_upstream_refuses_only_names_pass(gateway, stub, status, shown, error, names):
    stub.status, stub.kind, stub.headers = status, "application/json", {"retry-after": "7"}
    stub.pieces = lambda body: [] if status == 204 else [json.dumps({"error": error}).encode()]
    with gateway() as url:
        reply = post(url, STREAM)
    assert reply.status_code == shown and "secret" not in reply.text
    assert reply.json()["error"] == {
        "message": f"the upstream answered {status}", "type": "upstream_error", "param": None,
        "code": None,
    } | names  # fmt: skip
    assert reply.headers["retry-after"] == "7"


def test_an_upstream_that_names_no_error(gateway, stub):
    stub.pieces = lambda body: [
        event(chunk({"content": "Fine."}, error=None)), event(chunk({}, finish="stop")), DONE
    ]  # fmt: skip
    with gateway() as url:
        chunks, whole = events_of(post(url, STREAM).content), post(url, ASK)
    assert text_of(chunks) == "Fine." and not any("error" in one for one in chunks)
    assert whole.status_code == 200 and "error" not in whole.json()


@pytest.mark.parametrize("pieces", [[DONE], [event({"choices": []}), DONE], [b"{}"]])
def test_an_answer_without_choices_is_none(gateway, stub, pieces):
    stub.pieces = lambda body: pieces
    stub.kind = "application/json" if pieces == [b"{}"] else stub.kind
    with gateway() as url:
        chunks, whole = events_of(post(url, STREAM).content), post(url, ASK)
    assert chunks[-1]["error"]["code"] == "upstream_incomplete" and whole.status_code == 502


@pytest.mark.parametrize("raw", [b"[NaN]", b'{"choices": [], "x": 1e999}', b"[" * 100_000])
def test_events_that_cannot_be_written_again(gateway, stub, raw):
    stub.pieces = lambda body: [b"data: " + raw + b"\n\n", DONE]
    with gateway() as url:
        chunks = events_of(post(url, STREAM).content)
    assert chunks[-1]["error"]["code"] == "upstream_invalid"


def test_halves_of_characters_go_upstream_as_they_came(gateway, stub):
    body = STREAM | {"messages": [{"role": "user", "content": "a \ud83d b"}]}
    with gateway() as url:
        reply = httpx2.post(f"{url}/v1/chat/completions", content=json.dumps(body))
    assert text_of(events_of(reply.content)) == "Hello you."
    assert stub.asked[0][0]["messages"] == body["messages"]


def test_an_upstream_that_is_not_there(gateway):
    with gateway(upstream="http://127.0.0.1:9/v1") as url:
        reply = post(url, STREAM)
        models = httpx2.get(f"{url}/v1/models")
    assert reply.status_code == models.status_code == 502
    assert reply.json()["error"]["code"] == "upstream_unreachable"


def test_a_silent_upstream_is_given_up(gateway, stub):
    stub.delay = 5
    with gateway(upstream_timeout=0.2) as url:
        chunks = events_of(post(url, STREAM).content)
    assert chunks[-1]["error"]["code"] == "upstream_timeout"


@pytest.mark.parametrize("fault", ["raises", "nan"])
def test_a_monitor_that_fails_lets_nothing_pass(gateway, stub, monitor, monkeypatch, fault):
    original = monitor.scorer.score

    def score(chunks):
        if fault == "raises":
            raise RuntimeError("secret text")
        return [scores * float("nan") for scores in original(chunks)]

    monkeypatch.setattr(monitor.scorer, "score", score)
    if fault == "nan":
        monitor.settings = settings_of(DelayK(1), 0.99)
    with gateway(stop_text="") as url:
        reply = post(url, STREAM)
        whole = post(url, ASK)
        ready = httpx2.get(f"{url}/readyz")
    chunks = events_of(reply.content)
    assert text_of(chunks) == "" and b"secret" not in reply.content
    if fault == "raises":
        assert chunks[-1]["error"]["code"] == "monitor_failed" and whole.status_code == 502
        assert ready.status_code == 503
    else:
        assert finish_of(chunks) == "content_filter"


def test_more_clients_than_places(gateway, stub):
    stub.delay = 0.3
    with gateway(max_streams=2) as url:
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=STREAM | {"n": 2}) as first:
            assert first.status_code == 200
            full = post(url, STREAM)
            assert full.status_code == 503 and int(full.headers["retry-after"]) > 0
            assert len(stub.asked) == 1  # the upstream was not asked
        for _ in range(200):
            if "scm_open_streams 0.0" in httpx2.get(f"{url}/metrics").text:
                break
            time.sleep(0.02)
        stub.delay = 0.0
        assert post(url, STREAM).status_code == 200
        assert post(url, STREAM | {"n": 3}).status_code == 400


@pytest.mark.parametrize("when", ["before", "silent", "amid", "whole"])
def test_a_client_that_leaves_ends_the_upstream(gateway, stub, when):
    stub.pieces = lambda body: chat(*["word "] * 100)
    stub.delay = 3 if when == "silent" else 0.05
    stub.begin = 3 if when == "before" else 0
    with gateway() as url:
        body = ASK if when == "whole" else STREAM
        if when == "amid":
            with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
                next(reply.iter_bytes())
        else:
            with pytest.raises(httpx2.TimeoutException):
                httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=0.4)
        for _ in range(150):
            left = "scm_open_streams 0.0" in httpx2.get(f"{url}/metrics").text
            if left and (stub.left or when == "before"):
                break
            time.sleep(0.02)
    assert left and (when == "before" or (stub.left and stub.sent[0] < 60))


def test_a_client_that_stops_reading_is_left(gateway, stub):
    """As the server sees it: a send that never ends."""
    stub.pieces = lambda body: chat(*["word "] * 200)
    stub.delay = 0.02
    scope = {**SCOPE, "path": "/v1/chat/completions"}

    async def main() -> None:
        engine = gateway.service.engine
        body = [{"type": "http.request", "body": json.dumps(STREAM).encode(), "more_body": False}]
        bodies = []

        async def receive():
            return body.pop() if body else await asyncio.Event().wait()

        async def send(message):
            bodies.append(message)
            if len(bodies) > 3:
                await asyncio.Event().wait()

        async with engine.batcher:
            with suppress(BaseExceptionGroup, TimeoutError):
                await asyncio.wait_for(app(scope, receive, send), 20)
            assert engine.taken == 0 and 3 < len(bodies) < 8

    with serving(stub.app()) as upstream:
        options = {"upstream": f"{upstream}/v1", "send_timeout": 0.3, "model_path": "tiny"}
        gateway.service = build(GatewayConfig(**options), gateway.monitor)
        app = gateway.service.app()
        asyncio.run(main())
        for _ in range(100):
            if stub.left:
                break
            time.sleep(0.02)
    assert stub.left == 1


def test_a_client_that_left_before_the_first_chunk(gateway, stub):
    """The answer is ready, but nobody asks for its events."""

    class Chunks:
        closed = False

        async def aclose(self):
            self.closed = True

    async def main() -> None:
        chunks, stack, left = Chunks(), AsyncExitStack(), []
        stack.callback(left.append, True)
        service = build(GatewayConfig(model_path="tiny", upstream="http://x"), gateway.monitor)
        response = service._stream(Events(chunks, stack))

        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            await asyncio.Event().wait()

        await asyncio.wait_for(response({"type": "http", "method": "POST"}, receive, send), 20)
        assert chunks.closed and left

    asyncio.run(main())


def test_closing_ends_every_stream_with_a_last_chunk(gateway, stub):
    stub.pieces = lambda body: chat(*["word "] * 200)
    stub.delay = 0.05
    with gateway() as url:
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=STREAM) as reply:
            parts = reply.iter_bytes()
            content = next(parts)
            gateway.service.engine.closing.set()
            content += b"".join(parts)
    chunks = events_of(content)
    assert chunks[-1]["error"]["code"] == "shutting_down"


@pytest.mark.parametrize("stream", [True, False])
def test_closing_answers_those_that_still_wait_for_the_upstream(gateway, stub, stream):
    stub.begin = 20
    with gateway() as url:
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(post, url, ASK | {"stream": stream})
            while not stub.asked:
                time.sleep(0.02)
            gateway.service.engine.closing.set()
            reply = work.result()
        assert httpx2.get(f"{url}/readyz").status_code == 503
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "shutting_down"
    assert gateway.service.engine.taken == 0


def test_an_answer_that_is_ready_as_its_client_leaves_is_closed(gateway, stub):
    """The upstream has answered, but the request's task is cancelled."""

    async def main() -> None:
        stack, closed = AsyncExitStack(), []
        service = gateway.service

        class Request:
            headers, scope = {}, {}

            async def stream(self):
                yield json.dumps(STREAM).encode()

            async def receive(self):
                await asyncio.Event().wait()

        async def begin(ask, headers, stack):
            stack.callback(closed.append, True)
            return None

        service.gateway.begin = begin
        task = asyncio.create_task(service._complete(Request(), "chat"))
        while not closed and not task.done():
            await asyncio.sleep(0)
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert closed
        await stack.aclose()

    gateway.service = build(GatewayConfig(model_path="tiny", upstream="http://x"), gateway.monitor)
    asyncio.run(main())


def test_a_client_that_leaves_amid_its_own_request(gateway):
    async def main(app) -> list[int]:
        messages = [{"type": "http.request", "body": b'{"mess', "more_body": True}]
        messages.append({"type": "http.disconnect"})
        statuses = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            statuses.append(message.get("status"))

        await app({**SCOPE, "path": "/v1/chat/completions"}, receive, send)
        return statuses

    service = build(GatewayConfig(model_path="tiny", upstream="http://x"), gateway.monitor)
    assert asyncio.run(main(service.app()))[0] == 499
    assert b'upstreams_closed_total{why="client"} 1.0' in service.engine.counts.text()


def test_a_place_that_does_not_come(gateway, monitor, monkeypatch):
    async def admit(prompt):
        raise NoPlace("none")

    with gateway() as url:
        monkeypatch.setattr(gateway.service.engine.batcher, "admit", admit)
        chunks = events_of(post(url, STREAM).content)
        texts = post(url, {"input": ["One.", "Two."]}, "/v1/moderations")
        ready = httpx2.get(f"{url}/readyz")
    assert chunks[-1]["error"]["code"] == "overloaded" and texts.status_code == 503
    assert texts.headers["retry-after"] and ready.status_code == 503


@pytest.mark.parametrize("fault", ["torn", "silent", "broken", "talking"])
def test_what_comes_after_the_end_cannot_spoil_the_answer(gateway, stub, monkeypatch, fault):
    monkeypatch.setattr("serve.reading.LINGER", 0.3)
    ends = {"torn": b"x" * (1 << 21), "silent": b": nothing\n\n", "broken": b"data: {broken\n\n"}
    ends["talking"] = event({"choices": [], "usage": {"total_tokens": 3}})
    stub.pieces = lambda body: [*chat("Fine.")[:-1], *([ends[fault]] * 9)]
    stub.delay = 0.2 if fault in ("silent", "talking") else 0.0
    with gateway() as url:
        whole, chunks = post(url, ASK), events_of(post(url, STREAM).content)
    assert whole.status_code == 200 and text_of(chunks) == "Fine."
    assert not any("error" in one for one in chunks)
    if stub.delay:
        assert max(stub.sent) < 9


def test_an_answer_that_is_over_is_whole_though_the_service_closes(gateway, stub):
    """Only usage was waited for."""
    stub.pieces = lambda body: [*chat("Fine.")[:-1], *([b": nothing\n\n"] * 9)]
    stub.delay = 0.2
    with gateway() as url, ThreadPoolExecutor(1) as pool:
        work = pool.submit(post, url, ASK)
        while not stub.sent or stub.sent[0] < 5:  # its finish reason is out
            time.sleep(0.02)
        gateway.service.engine.closing.set()
        reply = work.result()
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == "Fine."


def test_an_empty_finish_reason_is_none_and_an_empty_text_is_one(gateway, stub):
    stub.pieces = lambda body: [
        event(chunk({"role": "assistant", "content": ""}, finish="")),
        event(chunk({}, finish="stop")), DONE,
    ]  # fmt: skip
    with gateway() as url:
        choice = post(url, ASK).json()["choices"][0]
    assert choice["message"]["content"] == "" and choice["finish_reason"] == "stop"


def test_annotations_before_the_first_choice_stay_there(gateway, stub):
    first = {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    stub.pieces = lambda body: [b"".join([event(first), *chat("Fine.")])]
    with gateway() as url:
        chunks = events_of(post(url, STREAM).content)
    assert [one for one in chunks if one["choices"] == []] == chunks[:1]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"no json", "JSON"), (b"[1]", "JSON object"), ({"messages": "hi"}, "messages"),
        (b'{"messages": NaN}', "JSON"), (b'{"temperature": 1e999}', "JSON"),
        ({"messages": []}, "messages"), ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (ASK | {"n": 0}, "'n'"), (ASK | {"n": "two"}, "'n'"), (ASK | {"n": True}, "'n'"),
        (ASK | {"stream": "yes"}, "'stream'"), (ASK | {"stream_options": 4}, "'stream_options'"),
    ],
)  # fmt: skip
def test_bad_requests_name_the_field(gateway, stub, body, field):
    with gateway() as url:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = httpx2.post(f"{url}/v1/chat/completions", content=content)
    assert reply.status_code == 400 and field in reply.json()["error"]["message"]
    assert not stub.asked


def test_too_much_is_refused_and_no_path_is_passed_on(gateway, stub):
    with gateway(max_body=2000) as url:
        long = {"messages": [{"role": "user", "content": "x" * 3000}]}
        assert post(url, long).status_code == 413
        for path in ("/v1/embeddings", "/v1/responses", "/v1//models", "/v1/chat", "/../etc"):
            assert httpx2.get(url + path).status_code in (404, 405)
            assert post(url, ASK, path).status_code in (404, 405)
    assert not stub.asked


def test_nothing_of_a_request_leads_elsewhere(gateway, stub):
    odd = {"host": "evil.example", "x-forwarded-host": "evil.example", "x-secret": "1"}
    with gateway() as url:
        post(url, STREAM | {"base_url": "http://evil.example"}, headers=odd | {"cookie": "a=b"})
    _, headers = stub.asked[0]
    assert "evil" not in headers["host"] and not {"x-secret", "cookie"} & set(headers)


def test_keys(gateway, stub, tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("alpha\n\nbeta\n")
    monkeypatch.setenv("UPSTREAM_API_KEY", "of-upstream")
    with gateway(key_file=str(tmp_path / "keys")) as url:
        assert post(url, STREAM).status_code == 401
        assert post(url, STREAM, headers={"authorization": "Bearer gamma"}).status_code == 401
        assert post(url, STREAM, headers={"authorization": "Bearer beta"}).status_code == 200
        assert httpx2.get(f"{url}/healthz").status_code == 200
    assert [headers["authorization"] for _, headers in stub.asked] == ["Bearer of-upstream"]


def test_the_clients_key_goes_upstream_where_the_service_has_none(gateway, stub):
    with gateway() as url:
        post(url, STREAM, headers={"authorization": "Bearer mine"})
        assert httpx2.get(f"{url}/v1/models").json()["data"][0]["id"] == "stub"
    assert stub.asked[0][1]["authorization"] == "Bearer mine"


def test_scores_on_request(gateway, stub):
    with gateway() as url:
        chunks = events_of(post(url, STREAM | {"scm": {"scores": True}}).content)
    judged = [one for c in chunks for one in c.get("scm", {}).get("judged", [])]
    assert sum(len(one["scores"]) for one in judged) == chunks[-1]["scm"]["channels"][0]["tokens"]
    assert judged[-1]["verified"] == judged[-1]["received"] == 10
    assert "scm" not in stub.asked[0][0]

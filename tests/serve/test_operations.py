"""Health, metrics, log, prompt check, options, and OpenAI's own client as the judge of it all."""

import asyncio
import io
import json
import logging
from contextlib import contextmanager

import httpx2
import openai
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from monitor.rules import DelayK
from serve.operations import LOGGER, JsonLines
from serve.options import GatewayConfig
from serve.serving import main
from tests.conftest import settings_of
from tests.serve.conftest import DONE, chat, chunk, event, events_of, finish_of, serving, text_of
from utils.files import InputError

ASK = {"model": "stub", "messages": [{"role": "user", "content": "Say something."}]}
SECRET = "unspeakable"


@contextmanager
def moderations(flagged: bool = True, status: int = 200, body: object = None):
    """An endpoint that checks prompts; yields its address and what it was asked."""
    asked = []

    async def check(request):
        asked.append(await request.json())
        result = {"flagged": flagged, "category_scores": {"a": 0.1, "b": 0.7}}
        said = body(asked[-1]) if callable(body) else body
        return JSONResponse({"results": [result]} if said is None else said, status)

    with serving(Starlette(routes=[Route("/v1/moderations", check, methods=["POST"])])) as url:
        yield f"{url}/v1", asked


def ask(url: str, **more):
    return httpx2.post(f"{url}/v1/chat/completions", json=ASK | more, timeout=30)


def test_health_and_metrics(gateway, monitor):
    with gateway(max_streams=5) as url:
        assert httpx2.get(f"{url}/healthz").json() == {"status": "ok"}
        assert httpx2.get(f"{url}/readyz").json() == {"ready": True}
        ask(url)
        monitor.settings = settings_of(DelayK(1), 1e-6)
        ask(url)
        lines = httpx2.get(f"{url}/metrics").text.splitlines()
        about = httpx2.get(f"{url}/about").json()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['scm_stops_total{level="unsafe",reason="harmful"}'] == "1.0"
    assert values['scm_ended_total{level="safe"}'] == "1.0"
    assert values['scm_requests_total{route="/v1/chat/completions",status="200"}'] == "2.0"
    assert float(values["scm_tokens_total"]) > 2 and values["scm_places"] == "5.0"
    assert values['scm_upstreams_closed_total{why="stopped"}'] == "1.0"
    assert float(values["scm_step_seconds_count"]) > 0
    assert about["model"] == "tiny" and about["places"] == 5


def test_metrics_of_what_breaks_off_and_of_other_words(gateway, stub):
    stub.pieces = lambda body: [
        event(chunk({"role": "assistant", "content": ""})), event(chunk({"content": "One two "})),
        event(chunk({"content": "no such choice"}, index=3)), b"data: {broken\n\n",
    ]  # fmt: skip
    with gateway() as url:
        ask(url, stream=True)
        form = {"Action": "TextModerationPlus", "ServiceParameters": '{"content": "Some words."}'}
        httpx2.post(url, data=form, timeout=30)
        body = {"texts": ["Some words."], "input_type": "response"}
        httpx2.post(f"{url}/beta/litellm_basic_guardrail_api", json=body, timeout=30)
        lines = httpx2.get(f"{url}/metrics").text.splitlines()
        stub.pieces = lambda body: [event(chunk({"role": "assistant", "content": ""})), DONE]
        ask(url, stream=True)
        later = httpx2.get(f"{url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    released = float(values["scm_released_characters_total"])
    assert 0 < released < 8 == released + float(values["scm_withheld_characters_total"])
    assert values["scm_withheld_fields_total"] == "1.0"
    assert values['scm_ended_total{level="safe"}'] == "2.0"
    assert 'scm_first_text_seconds_count{at="client"} 1.0' in later  # a role is no text


def test_the_log_holds_neither_texts_nor_keys(gateway, stub, monitor, monkeypatch):
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    monkeypatch.setattr(LOGGER, "propagate", False)
    LOGGER.setLevel(logging.INFO)
    stub.pieces = lambda body: chat(f"{SECRET} words.")

    def fail(chunks):
        raise RuntimeError(SECRET)

    with gateway() as url:
        headers = {"authorization": f"Bearer {SECRET}-key"}
        body = ASK | {"messages": [{"role": "user", "content": SECRET}]}
        httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        monkeypatch.setattr(monitor.scorer, "score", fail)
        httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {"started", "choice_ended", "monitor_failed", "ended"} <= {one["event"] for one in lines}
    assert {one["level"] for one in lines} == {"info", "error"}  # of the log, not of a verdict
    assert SECRET not in out.getvalue()


def test_a_blocked_prompt_is_an_error_as_azures(gateway, stub):
    with moderations() as (check, asked), gateway(prompt_check=check) as url:
        reply = ask(url, stream=True)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["code"] == "content_filter"
    assert error["innererror"]["content_filter_result"]["harmful"]["filtered"]
    assert asked == [{"input": "Say something."}] and len(stub.asked) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_blocked_prompt_may_be_a_refusal(gateway, stub, stream):
    with moderations() as (check, _), gateway(prompt_check=check, refusal="No.") as url:
        reply = ask(url, stream=stream, n=2)
    assert reply.status_code == 200
    for index in range(2):
        if stream:
            chunks = events_of(reply.content)
            assert text_of(chunks, index) == "No." and finish_of(chunks, index) == "content_filter"
            assert text_of(chunks, index, "role") == "assistant"
        else:
            choice = reply.json()["choices"][index]
            assert choice["message"] == {"role": "assistant", "content": "No."}
            assert choice["finish_reason"] == "content_filter"


def test_a_blocked_prompt_does_not_wait_for_the_upstream(gateway, stub):
    stub.begin = 20
    with moderations() as (check, _), gateway(prompt_check=check) as url:
        reply = httpx2.post(f"{url}/v1/chat/completions", json=ASK, timeout=10)
        assert reply.status_code == 400 and reply.json()["error"]["code"] == "content_filter"
        assert gateway.service.engine.taken == 0


def test_a_prompt_that_passes(gateway):
    with moderations(False) as (check, _), gateway(prompt_check=check) as url:
        reply = ask(url, moderation={}).json()
    assert reply["choices"][0]["message"]["content"] == "Hello you."
    found = reply["moderation"]["input"]["results"][0]
    assert not found["flagged"] and found["category_scores"]["harmful"] == 0.7


@pytest.mark.parametrize("body", [
    {"results": []}, {"results": [{"flagged": "no"}]}, [1], None,
    {"results": [{"flagged": False, "category_scores": {"a": 10**400}}]},
])  # fmt: skip
def test_a_check_that_fails_blocks_unless_it_may_pass(gateway, body):
    status = 500 if body is None else 200
    with moderations(False, status, body) as (check, _):
        with gateway(prompt_check=check) as url:
            reply = ask(url)
            assert reply.status_code == 503 and reply.headers["retry-after"]
        with gateway(prompt_check=check, prompt_check_failure="pass") as url:
            assert ask(url).status_code == 200


def test_a_prompt_that_cannot_be_checked_hides_no_other(gateway):
    def answer(body):
        return [1] if body["input"] == "odd" else {"results": [{"flagged": True}]}

    with moderations(body=answer) as (check, asked):
        with gateway(prompt_check=check, prompt_check_failure="pass") as url:
            body = {"model": "stub", "prompt": ["odd", "bad"]}
            reply = httpx2.post(f"{url}/v1/completions", json=body, timeout=30)
    assert reply.status_code == 400 and [one["input"] for one in asked] == ["odd", "bad"]


def test_openais_client_is_satisfied(gateway, stub, monitor):
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with gateway(stop_text="[no]", azure=True) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        whole = client.chat.completions.create(**ASK)
        assert whole.choices[0].message.content == "Hello you."
        parts = [*client.chat.completions.create(**ASK, stream=True, n=1)]
        assert "".join(one.choices[0].delta.content or "" for one in parts) == "Hello you."
        assert parts[-1].choices[0].finish_reason == "stop"
        text = client.completions.create(model="stub", prompt="x").choices
        assert text == [] or text[0].text is not None
        assert not client.moderations.create(input="Some words.").results[0].flagged
        assert client.models.list().data[0].id == "stub"

        async def several():
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as one:
                return await asyncio.gather(*(one.chat.completions.create(**ASK) for _ in range(8)))

        found = asyncio.run(several())
        assert {one.choices[0].message.content for one in found} == {"Hello you."}

        stub.pieces = lambda body: [
            *chat("x")[:1], event(chunk({"tool_calls": [call]})), *chat("")[-2:]
        ]  # fmt: skip
        tools = client.chat.completions.create(**ASK).choices[0].message.tool_calls
        assert tools[0].function.name == "f" and tools[0].function.arguments == "{}"

        stub.pieces = lambda body: chat("Hello", " you", ".")
        monitor.settings = settings_of(DelayK(1), 1e-6)
        parts = [*client.chat.completions.create(**ASK, stream=True)]
        assert parts[-1].choices[0].finish_reason == "content_filter"
        assert client.moderations.create(input="Some words.").results[0].flagged
        stub.status = 500
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**ASK)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"upstream": "http://x", "llm": "y"}, "--upstream and --llm exclude"),
        ({"upstream": "ftp://x/v1"}, "--upstream: 'ftp://x/v1' is no http"),
        ({"upstream": "x/v1"}, "--upstream: 'x/v1' is no http"),
        ({"llm": "x", "prompt_check": "x"}, "--prompt-check: 'x' is no http"),
        ({"llm": "x", "hold_back": "-1"}, "--hold-back: '-1'"),
        ({"llm": "x", "hold_back": "words"}, "--hold-back: 'words'"),
        ({"llm": "x", "port": 70000}, "--port: 70000"),
        ({"llm": "x", "idle_timeout": 0}, "--idle-timeout: 0 is not > 0"),
        ({"llm": "x", "grace": -1}, "--grace: -1 is below 0"),
        ({"llm": "x", "tls_key": "k"}, "--tls-certificate and --tls-key"),
        ({"llm": "x", "max_streams": 0}, "--max-streams"),
    ],
)
def test_bad_options_are_named(options, fault):
    with pytest.raises(InputError, match=fault):
        GatewayConfig(model_path="m", **options)


def test_a_certificate_that_is_none_is_named_before_the_models_are_loaded(tmp_path):
    (tmp_path / "c.pem").write_text("none")
    for certificate in (tmp_path / "c.pem", tmp_path / "missing.pem"):
        options = {"tls_certificate": str(certificate), "tls_key": str(certificate)}
        with pytest.raises(InputError, match="--tls-certificate, --tls-key: "):
            main(GatewayConfig(model_path="no such model", llm="none", port=0, **options))


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff"])
def test_a_key_file_without_keys(tmp_path, content):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"keys: (cannot be read|holds no key)"):
        GatewayConfig(model_path="m", llm="x", key_file=str(path)).keys()

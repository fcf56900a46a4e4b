"""The language model in the same process, and the service as its script starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from websockets.sync.client import connect

from serve.embedded import EmbeddedUpstream, read_settings
from serve.options import GatewayConfig
from serve.serving import build
from serve.upstream import UpstreamError
from tests.conftest import ROOT
from tests.serve.conftest import events_of, finish_of, serving, text_of

ASK = {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 12}


@pytest.fixture()
def service(monitor, tiny):
    upstream = EmbeddedUpstream(tiny)
    return build(GatewayConfig(model_path="m", llm=str(tiny)), monitor, upstream)


def test_it_answers(service):
    with serving(service.app()) as url:
        whole = httpx2.post(f"{url}/v1/chat/completions", json=ASK, timeout=60).json()
        reply = httpx2.post(f"{url}/v1/chat/completions", json=ASK | {"stream": True}, timeout=60)
        text = {"prompt": "Once", "max_tokens": 6}
        legacy = httpx2.post(f"{url}/v1/completions", json=text, timeout=60).json()
        models = httpx2.get(f"{url}/v1/models").json()
    chunks = events_of(reply.content)
    assert text_of(chunks) == whole["choices"][0]["message"]["content"] != ""
    assert finish_of(chunks) == whole["choices"][0]["finish_reason"] in ("length", "stop")
    assert legacy["choices"][0]["text"] and models["data"][0]["id"] == "tiny"


def test_an_answer_that_nobody_reads_ends(service):
    with serving(service.app()) as url:
        body = ASK | {"stream": True, "max_tokens": 500}
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            next(reply.iter_bytes())
        began = time.monotonic()
        again = httpx2.post(f"{url}/v1/chat/completions", json=ASK, timeout=60)
        assert again.status_code == 200 and time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"temperature": "hot"}, "'temperature'"), ({"temperature": -1}, "'temperature'"),
        ({"max_tokens": 10**6}, "'max_tokens'"), ({"seed": True}, "'seed'"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(body, field):
    with pytest.raises(UpstreamError, match=field):
        read_settings(ASK | body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", ASK | {"n": 2}), ("completions", {"prompt": ["a", "b"]}),
        ("completions", {"prompt": ""}),
    ],
)  # fmt: skip
def test_it_gives_one_answer(service, path, body):
    with serving(service.app()) as url:
        reply = httpx2.post(f"{url}/v1/{path}", json=body, timeout=60)
    assert reply.status_code == 400 and "one answer" in reply.json()["error"]["message"]


def test_half_a_character_is_read_as_one_that_is_unknown(service):
    content = json.dumps({"messages": [{"role": "user", "content": "a \ud83d b"}], "max_tokens": 3})
    with serving(service.app()) as url:
        reply = httpx2.post(f"{url}/v1/chat/completions", content=content, timeout=20)
    assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"]


def test_a_model_that_fails_is_an_upstream_that_fails(service, monkeypatch):
    def fail(**_):
        raise RuntimeError("unspeakable")

    monkeypatch.setattr(service.gateway.upstream._model, "generate", fail)
    with serving(service.app()) as url:
        reply = httpx2.post(f"{url}/v1/chat/completions", json=ASK, timeout=20)
    assert reply.status_code == 502 and reply.json()["error"]["code"] == "upstream_failed"
    assert "unspeakable" not in reply.text


@pytest.mark.slow
def test_the_script_serves_until_it_is_told_to_end(monitors, tiny, tmp_path):
    folder, _ = monitors("tiny")
    settings = {"rule": "delay-k", "k": 2, "unsafe": 0.9, "score_with": "token", "token_theta": 0.9}
    (tmp_path / "monitor.json").write_text(json.dumps(settings))
    words = ["--model-path", str(folder), "--llm", str(tiny), "--port", "0"]
    words += ["--settings", str(tmp_path / "monitor.json"), "--grace", "1"]
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "run-gateway.sh"), *words],
        env={**os.environ, "VIRTUAL_ENV": sys.prefix},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert "the gateway listens at http://127.0.0.1:" in line, process.stderr.read()
        url = line.split()[4].rstrip(";")
        assert httpx2.get(f"{url}/readyz", timeout=60).json() == {"ready": True}
        assert "<title>Streaming content monitor" in httpx2.get(url).text
        with connect(url.replace("http", "ws") + "/v1/sessions") as socket:
            socket.send("{}")
            assert "id" in json.loads(socket.recv())
        body = ASK | {"max_tokens": 500}
        with ThreadPoolExecutor(1) as pool:  # an answer that is not streamed
            asked = pool.submit(httpx2.post, f"{url}/v1/chat/completions", json=body, timeout=60)
            for _ in range(200):
                if "scm_open_streams 1.0" in httpx2.get(f"{url}/metrics").text:
                    break
            process.send_signal(signal.SIGTERM)
            reply = asked.result()
        assert reply.status_code in (200, 503)
        assert process.wait(20) in (0, 128 + signal.SIGTERM)
        log = [json.loads(line) for line in process.stderr.read().splitlines() if line[:1] == "{"]
        assert [one["event"] for one in log][-1] == "ended"
    finally:
        process.kill()


def test_an_address_that_is_taken(monitors, tiny, tmp_path):
    folder, _ = monitors("tiny")
    (folder / "monitor.json").write_text(
        json.dumps({"rule": "delay-k", "k": 2, "unsafe": 0.9, "score_with": "token",
                    "token_theta": 0.9})
    )  # fmt: skip
    try:
        with serving(lambda *_: None, lifespan="off") as url:
            port = url.rpartition(":")[2]
            words = ["--model-path", str(folder), "--llm", str(tiny), "--port", port]
            done = subprocess.run(
                [sys.executable, "-m", "serve", "gateway", *words],
                cwd=ROOT, capture_output=True, text=True,
            )  # fmt: skip
    finally:
        (folder / "monitor.json").unlink()
    assert done.returncode == 2 and f"cannot listen at 127.0.0.1:{port}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

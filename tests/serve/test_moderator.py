"""The monitor's own moderator behind the gateway: told first, a gate, a prior, read once."""

from dataclasses import replace

import httpx2
import openai
import pytest
from selenium.webdriver.common.by import By

from monitor.rules import DelayK
from monitor.stream import StreamingContentMonitor
from serve.options import GatewayConfig
from tests.conftest import settings_of
from tests.monitor.test_monitor_prompts import ALL, NONE, Judge
from tests.monitor.test_monitor_stream import plain_model
from tests.serve.conftest import chat, events_of, finish_of, text_of
from tests.serve.test_gateway_http import ASK, STREAM, post
from tests.serve.test_page import start
from utils.files import InputError

SCORES = {"scm": {"scores": True}}


@pytest.fixture()
def monitor(monitors):
    """A monitor that stops nothing, and whose moderator flags all prompts."""
    folder, plain = monitors("tiny")
    return StreamingContentMonitor(
        plain_model(folder), plain.tokenizer, settings_of(), moderator=Judge(ALL)
    )


def tokens_read(monitor, monkeypatch) -> list[int]:
    """Counts the tokens of each pass from now on."""
    counts, score = [], monitor.scorer.score

    def counted(chunks):
        counts.append(sum(len(new) for _, new in chunks))
        return score(chunks)

    monkeypatch.setattr(monitor.scorer, "score", counted)
    return counts


def test_the_verdict_comes_before_the_answer_and_with_its_end(gateway, monitor):
    with gateway() as url:
        chunks = events_of(post(url, STREAM | SCORES).content)
        told = chunks[0]["scm"]["prompts"]
        assert told == [{"index": 0, "flagged": True, "score": 0.5, "classes": {}}]
        assert chunks[0]["choices"] == [] and chunks[0]["object"] == "chat.completion.chunk"
        assert text_of(chunks) == "Hello you." and finish_of(chunks) == "stop"
        assert chunks[-1]["scm"]["prompt"]["flagged"]
        monitor.moderator.bound = NONE
        chunks = events_of(post(url, STREAM).content)  # nobody asked for scores
        assert "scm" not in chunks[0] and not chunks[-1]["scm"]["prompt"]["flagged"]
        whole = post(url, ASK | SCORES | {"moderation": {}}).json()
        assert whole["id"] == "c1" and whole["scm"][0]["prompts"][0]["flagged"] is False
        assert whole["moderation"]["input"]["results"][0]["category_scores"]["harmful"] == 0.5
        counters = httpx2.get(f"{url}/metrics").text
        assert "scm_flagged_prompts_total 1.0" in counters
        assert gateway.service.engine.taken == 0


def test_no_prompt_is_read_twice(gateway, monitor, monkeypatch):
    length = len(monitor.prompt_ids("Say something."))
    with gateway() as url:
        counts = tokens_read(monitor, monkeypatch)
        post(url, STREAM)
        answer = sum(counts) - length
        assert counts[0] == length and 0 < answer < length + 12
        monitor.moderator.seen.clear()
        counts.clear()
        chunks = events_of(post(url, STREAM | SCORES | {"n": 3}).content)
        assert [one["index"] for one in chunks[0]["scm"]["prompts"]] == [0, 1, 2]
    assert len(monitor.moderator.seen) == 1  # the stub gives one choice
    assert sum(counts) == length + answer


@pytest.mark.parametrize("stream", [True, False])
def test_a_gate_blocks_and_gives_all_places_back(gateway, stub, monitor, stream):
    monitor.on_prompt, stub.begin = "stop", 20
    with gateway(max_streams=2) as url:
        for _ in range(5):
            reply = post(url, ASK | {"stream": stream, "n": 2})
            assert reply.status_code == 400 and reply.json()["error"]["code"] == "content_filter"
            assert [one["flagged"] for one in reply.json()["scm"]["prompts"]] == [True, True]
        assert gateway.service.engine.taken == 0
        monitor.moderator.bound, stub.begin = NONE, 0
        assert text_of(events_of(post(url, STREAM).content)) == "Hello you."
        assert httpx2.get(f"{url}/readyz").status_code == 200


def test_a_gates_refusal_tells_the_verdict_first(gateway, monitor):
    monitor.on_prompt = "stop"
    with gateway(refusal="No.", azure=True) as url:
        chunks = events_of(post(url, STREAM | SCORES).content)
        assert chunks[0]["scm"]["prompts"][0]["flagged"] and text_of(chunks) == "No."
        results = chunks[0]["prompt_filter_results"][0]["content_filter_results"]["harmful"]
        assert results == {"filtered": True, "severity": "high"}
        assert post(url, ASK).json()["choices"][0]["message"]["content"] == "No."


def test_openais_client_reads_azures_prompt_results(gateway):
    with gateway(azure=True) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        parts = [*client.chat.completions.create(**STREAM)]
        results = parts[0].prompt_filter_results[0]["content_filter_results"]["harmful"]
        assert results == {"filtered": False, "severity": "high"} and not parts[0].choices
        said = "".join(one.choices[0].delta.content or "" for one in parts if one.choices)
        assert said == "Hello you."


def test_a_prompt_is_one_of_azures_however_many_choices_it_has(gateway):
    with gateway(azure=True) as url:
        chunks = events_of(post(url, STREAM | {"n": 3}).content)
        assert [one["prompt_index"] for one in chunks[0]["prompt_filter_results"]] == [0]
        body = {"model": "stub", "prompt": ["One.", "Two."], "n": 2, "stream": True}
        chunks = events_of(post(url, body, "/v1/completions").content)
        assert [one["prompt_index"] for one in chunks[0]["prompt_filter_results"]] == [0, 1]


def test_one_flagged_prompt_of_several_blocks_the_answer(gateway, monitor):
    """Whatever its place: the judge flags the one whose states sum up to more."""
    monitor.on_prompt = "stop"
    prompts = ["Say something.", "Well, what else is there to say?"]
    for prompt in prompts:
        monitor.open(prompt).free()
    sums = [float(states.sum()) for states in monitor.moderator.seen]
    monitor.moderator.bound = sum(sums) / 2
    with gateway() as url:
        for order in (prompts, prompts[::-1]):
            body = {"model": "stub", "prompt": order}
            reply = post(url, body, "/v1/completions")
            assert reply.status_code == 400
            flagged = [one["flagged"] for one in reply.json()["scm"]["prompts"]]
            assert sorted(flagged) == [False, True]
        assert gateway.service.engine.taken == 0


@pytest.mark.parametrize("blank", [" ", "\u2028", "", None])
def test_a_blank_message_hides_no_prompt(gateway, monitor, blank):
    monitor.on_prompt = "stop"
    messages = [ASK["messages"][0], {"role": "user", "content": blank}]
    with gateway() as url:
        assert post(url, ASK | {"messages": messages}).status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_moderator_that_fails_lets_nothing_pass(gateway, monitor, monkeypatch, stream):
    def fail(states):
        raise RuntimeError("not a number")

    with gateway(max_streams=1) as url:
        with monkeypatch.context() as patch:
            patch.setattr(monitor.moderator, "judge", fail)
            for _ in range(2):
                reply = post(url, ASK | {"stream": stream})
                assert reply.status_code == 500
                assert reply.json()["error"]["code"] == "monitor_failed"
            with pytest.raises(RuntimeError, match="not a number"):
                monitor.open("Say something.")
        assert text_of(events_of(post(url, STREAM).content)) == "Hello you."


def test_faults_give_the_places_back(gateway, stub, monitor, monkeypatch):
    def fail(chunks):
        raise RuntimeError("no")

    stub.status = 500
    with gateway(max_streams=1) as url:
        for _ in range(3):
            assert post(url, STREAM).status_code == 500
        stub.status = 200
        with monkeypatch.context() as patch:
            patch.setattr(monitor.scorer, "score", fail)
            reply = post(url, STREAM)
            assert reply.status_code == 500
            assert reply.json()["error"]["code"] == "monitor_failed"
        assert text_of(events_of(post(url, STREAM).content)) == "Hello you."
        assert gateway.service.engine.taken == 0


def test_a_stream_that_was_given_up_meanwhile_is_opened_anew(gateway, stub):
    stub.begin = 1.0
    with gateway(idle_timeout=0.3) as url:
        chunks = events_of(post(url, STREAM).content)
    assert text_of(chunks) == "Hello you." and finish_of(chunks) == "stop"


def test_an_empty_prompt_is_not_judged(gateway, monitor):
    monitor.on_prompt = "stop"
    with gateway() as url:
        assert httpx2.get(f"{url}/readyz").status_code == 200
        body = ASK | {"messages": [{"role": "user", "content": ""}]}
        assert post(url, body).json()["choices"][0]["message"]["content"] == "Hello you."
        result = post(url, {"input": "Some words."}, "/v1/moderations").json()["results"][0]
        assert not result["flagged"]
    assert not monitor.moderator.seen


def test_a_prior_decides(gateway, stub, monitor):
    monitor.settings = replace(settings_of(DelayK(1), 1.0), flagged_unsafe=1e-6)
    monitor.on_prompt = "prior"
    stub.pieces = lambda body: chat("Some words ", "and more")
    with gateway() as url:
        whole = post(url, ASK | {"moderation": {}}).json()
        assert whole["choices"][0]["finish_reason"] == "content_filter"
        assert whole["scm"][-1]["reason"] == "harmful"
        monitor.moderator.bound = NONE
        whole = post(url, ASK).json()
        assert whole["choices"][0]["finish_reason"] == "stop"
        with monitor.open("Say it.") as stream:
            verdict = replace(stream.feed("Some words"), statistic=0.4)
        engine = gateway.service.engine
        assert engine.nearness(verdict) == 0.4
        monitor.settings = replace(monitor.settings, flagged_unsafe=0.8)
        flagged = replace(verdict, prompt=replace(verdict.prompt, flagged=True))
        assert engine.nearness(flagged) == pytest.approx(0.5)


def test_sessions_tell_the_prompts_verdict(gateway, monitor):
    with gateway() as url:
        identity = post(url, {"prompt": "Say it."}, "/v1/sessions").json()["id"]
        known = post(url, {"text": "Some words", "final": True}, f"/v1/sessions/{identity}").json()
        assert known["prompt"] == {"flagged": True, "score": 0.5, "classes": {}}
        monitor.on_prompt = "stop"
        identity = post(url, {"prompt": "Say it."}, "/v1/sessions").json()["id"]
        known = post(url, {"text": "Some words", "final": True}, f"/v1/sessions/{identity}").json()
        assert known["stopped"] and known["reason"] == "prompt" and known["release"] == 0


@pytest.mark.slow
def test_the_prompts_verdict_stands_there_before_the_answer(open_page, browser, stub, monitor):
    stub.pieces, stub.delay = lambda body: chat("Light is ", "refracted."), 1.0
    open_page()
    start(browser)
    open_page.wait(lambda: "flagged (score 0.500)" in open_page.text("prompt-verdict"))
    assert open_page.text("answer") == ""
    open_page.wait(lambda: "ran through" in open_page.text("status"))
    assert open_page.text("answer") == "Light is refracted."
    monitor.moderator.bound, stub.delay = NONE, 0.0
    start(browser)
    open_page.wait(lambda: "not flagged (score 0.500)" in open_page.text("prompt-verdict"))
    monitor.moderator.bound, monitor.on_prompt = ALL, "stop"
    start(browser)
    open_page.wait(lambda: "failed: The prompt was blocked." in open_page.text("status"))
    assert open_page.text("prompt-verdict").startswith("Prompt: flagged")
    assert open_page.text("answer") == ""
    browser.find_element(By.CSS_SELECTOR, "[value=text]").click()
    script = "document.getElementById('text').value = 'Some words of mine.'"
    browser.execute_script(script)
    start(browser)
    open_page.wait(lambda: "stopped: safe, prompt" in open_page.text("status"))
    assert open_page.text("prompt-verdict").startswith("Prompt: flagged")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"moderator": "m", "prompt_check": "http://x/v1"}, "--moderator and --prompt-check"),
        ({"on_prompt": "stop"}, "--on-prompt stop: needs --moderator"),
    ],
)
def test_options_that_exclude_each_other(options, fault):
    with pytest.raises(InputError, match=fault):
        GatewayConfig(model_path="m", llm="x", **options)

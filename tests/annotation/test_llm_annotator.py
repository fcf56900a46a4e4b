"""The LLM annotator against a stub endpoint: labels in order, settings, options."""

import itertools
import json
import time

import pytest

from annotation.annotators.llm import LlmConfig
from annotation.chat import WINDOW
from annotation.records import Annotation
from tests.annotation.chat_server import Reply, record, verdict
from tests.annotation.conftest import wait_for
from utils.files import InputError

KEY = "sk-test-0123456789"


def test_labels_in_order_though_answers_are_not(make, server):
    def later_ones_first(call):
        time.sleep(0.05 if "0." in call.sentences[0] else 0)
        return verdict(call)

    server.script = later_ones_first
    records = [record(n, [f"Tea {n}.", *["bitter"] * (n % 3), "Warm."]) for n in range(30)]
    annotator = make()
    expected = [Annotation([0, *[1] * (n % 3), 0]) for n in range(30)]
    assert list(annotator.annotate(records)) == expected
    report = annotator.report()
    assert report["model"] == "stub" and report["prompt_version"] >= 1
    assert report["calls"] == 30 and report["rejected"] == report["cached_answers"] == 0
    assert (report["prompt_tokens"], report["completion_tokens"]) == (300, 90)


@pytest.mark.parametrize("limit", [1, 3])
def test_calls_in_flight_reach_the_limit_and_stay_there(make, server, limit):
    def slow(call):
        time.sleep(0.02)
        return verdict(call)

    server.script = slow
    list(make(llm_concurrency=limit).annotate(map(record, range(12))))
    assert server.peak == limit


def test_one_slow_answer_holds_up_no_other(make, server):
    """While the first call waits, the others' places are taken again and again."""

    def first_waits(call):
        if "number 0." in call.sentences[0]:
            wait_for(lambda: len(server.calls) >= 8)
        return verdict(call)

    server.script = first_waits
    assert len(list(make(llm_concurrency=2, llm_retries=0).annotate(map(record, range(20))))) == 20


def test_endless_input_is_read_no_further_than_the_window(make):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield record(number)

    results = make(llm_concurrency=2).annotate(endless())
    for got in range(1, 21):
        assert next(results).labels == [0, 1, 0]
        assert len(taken) < got + WINDOW * 2
    results.close()


def test_second_question_says_what_was_wrong(make, server):
    server.script = lambda call: verdict(call) if call.earlier == 2 else Reply('{"harmful": [7]}')
    annotator = make(llm_answers=3)
    assert list(annotator.annotate([record(0)])) == [Annotation([0, 1, 0])]
    first, second, third = (call.question for call in server.calls)
    assert "not accepted" not in first
    assert second.startswith(first) and second.count("a number lies outside 1 to 3") == 1
    assert third.startswith(first) and third.count("a number lies outside 1 to 3") == 2
    assert annotator.report()["invalid_answers"] == 2 and annotator.report()["rejected"] == 0


@pytest.mark.parametrize(
    "reply, reason",
    [
        (Reply('{"harmful": [9]}'), "a number lies outside 1 to 3"),
        (Reply('{"harmful": []}', finish_reason="content_filter"), "content filter"),
        (Reply(None), "the answer is empty"),
        (Reply(" "), "the answer is empty"),
        (Reply('{"harmful": [2', finish_reason="length"), "cut off"),
        (Reply("<think>Let us see", finish_reason="length"), "cut off"),
        (Reply(None, finish_reason="length"), "cut off"),
    ],
)
def test_record_that_never_fits_is_rejected_and_the_run_goes_on(make, server, reply, reason):
    server.script = lambda call: reply if "number 1." in call.sentences[0] else verdict(call)
    annotator = make(llm_answers=3)
    first, second, third = annotator.annotate(map(record, range(3)))
    assert first.labels == third.labels == [0, 1, 0] and second.labels is None
    assert second.problem.startswith("the model's answer never fitted: ")
    assert reason in second.problem and "Tea" not in second.problem
    assert server.asked["Tea number 1."] == 3
    assert annotator.report()["invalid_answers"] == 3 and annotator.report()["rejected"] == 1


def test_an_answer_that_is_whole_at_the_limit_is_as_good_as_any(make, server):
    server.script = lambda call: Reply('{"harmful": [2]}', finish_reason="length")
    assert list(make().annotate([record(0)])) == [Annotation([0, 1, 0])]
    assert len(server.calls) == 1


@pytest.mark.parametrize("temperature", [-1.0, 0.0, 0.5])
def test_temperature_is_sent_unless_it_is_negative(make, server, temperature):
    """GPT-5 and the o-series refuse any."""
    annotator = make(llm_temperature=temperature)
    list(annotator.annotate([record(0)]))
    sent = None if temperature < 0 else temperature
    (call,) = server.calls
    assert call.body.get("temperature") == annotator.report()["temperature"] == sent
    assert call.body["model"] == "stub" and "max_tokens" not in call.body


def test_key_is_sent_and_shown_nowhere(make, server, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY + "\n")
    annotator = make()
    results = annotator.annotate(map(record, range(9)))
    next(results)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # the log beside it, too
    assert kept and KEY.encode() not in kept and b"tea" not in kept.lower()
    list(results)
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    echo = json.dumps({"error": {"message": f"bad key {KEY}", "code": KEY}})
    for status in (401, 501):
        server.script = lambda call, status=status: Reply(status=status, body=echo)
        with pytest.raises(InputError) as caught:
            assert KEY not in str(list(annotator.annotate(map(record, range(10, 20)))))
        assert KEY not in str(caught.value)
    assert KEY not in json.dumps(annotator.report()) and KEY not in str(vars(annotator))


def test_without_a_key_a_placeholder_goes_out(make, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)  # meant for another endpoint
    list(make().annotate([record(0)]))
    assert server.calls[0].headers["authorization"] == "Bearer none"
    monkeypatch.setenv("STUB_KEY", "clé")
    with pytest.raises(InputError, match="^STUB_KEY: "):
        make()


@pytest.mark.parametrize(
    "settings, option",
    [
        ({"annotator_model": " "}, "--annotator-model"),
        ({"llm_temperature": float("nan")}, "--llm-temperature"),
        ({"llm_temperature": float("inf")}, "--llm-temperature"),
        ({"llm_url": ""}, "--llm-url"),
        ({"llm_url": "localhost:8000/v1"}, "--llm-url"),
        ({"llm_url": "file:///etc/hosts"}, "--llm-url"),
        ({"llm_url": "http://"}, "--llm-url"),
        ({"llm_url": "http://local host/v1"}, "--llm-url"),
        ({"llm_url": "http://localhost:port/v1"}, "--llm-url"),
        ({"llm_url": "http://[::1/v1"}, "--llm-url"),
        ({"llm_url": f"http://me:{KEY}@localhost/v1"}, "--llm-url"),
        ({"llm_url": f"http://localhost/v1?key={KEY}"}, "--llm-url"),
    ],
)
def test_bad_settings(make, settings, option):
    with pytest.raises(InputError, match=f"^{option}: ") as caught:
        make(**settings)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [KEY, f"{KEY}\n", "", "1KEY", "KEY NAME", "KEY=1", "KEY\n", "CLÉ"])
def test_a_key_in_place_of_its_variables_name_is_not_repeated(name):
    """As stats.json holds all options."""
    with pytest.raises(InputError, match="^--llm-key-env: [^\n]*$") as caught:
        LlmConfig("in", "out", llm_key_env=name, annotator_model="m")
    assert not name or name not in str(caught.value)

"""The LLM annotator and endpoints that fail, refuse, redirect, trickle or flood."""

import gzip
import json
import socket
import time

import pytest

from annotation.chat import ANSWER_BYTES, REFUSALS, LLMAnnotator
from annotation.records import Annotation
from tests.annotation.chat_server import ChatServer, Reply, record, verdict
from utils.files import InputError

AT_ONCE = {"retry-after-ms": "1"}  # the SDK's own backoff would start at half a second


def fail(annotator: LLMAnnotator, records) -> str:
    """Runs into an error and returns its message, one line."""
    with pytest.raises(InputError) as caught:
        list(annotator.annotate(records))
    message = str(caught.value)
    assert "\n" not in message and "Tea" not in message
    return message


@pytest.mark.parametrize("trouble", ["429", "500", "timeout", "hang up"])
def test_passing_trouble_is_retried(make, server, trouble):
    def first_time_bad(call):
        if call.earlier or "number 1." not in call.sentences[0]:
            return verdict(call)
        if trouble == "timeout":
            time.sleep(0.8)
        if trouble == "hang up":
            raise ConnectionError
        return Reply(status=int(trouble) if trouble.isdigit() else 200, headers=AT_ONCE)

    server.script = first_time_bad
    annotator = make(llm_timeout=0.5 if trouble == "timeout" else 10)
    assert [a.labels for a in annotator.annotate(map(record, range(3)))] == [[0, 1, 0]] * 3
    assert annotator.report()["retries"] == 1 and annotator.report()["calls"] == 3


def test_endpoint_that_is_not_there(make):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        message = fail(make(llm_url=f"http://127.0.0.1:{port}/v1", llm_retries=0), [record("\n")])
    url = f"http://127.0.0.1:{port}/v1"
    assert message.startswith(f"{url}: All connection attempts failed, at record 'r\\n'; ")


@pytest.mark.parametrize("trouble", ["HTTP 429", "HTTP 503", "timed out"])
def test_exhausted_retries_keep_what_was_answered(make, server, trouble):
    def down_at_5(call):
        if "number 5." not in call.sentences[0]:
            return verdict(call)
        if trouble == "timed out":
            time.sleep(0.7)
        return Reply(status=int(trouble[-3:]) if trouble[-1].isdigit() else 200, headers=AT_ONCE)

    server.script = down_at_5
    timeout = 0.5 if trouble == "timed out" else 10
    message = fail(make(llm_timeout=timeout, llm_concurrency=1), map(record, range(9)))
    assert f"{trouble} after 1 retries, at record 'r5'" in message
    assert server.asked["Tea number 5."] == 2
    server.script = verdict
    annotator = make()
    assert len(list(annotator.annotate(map(record, range(9))))) == 9
    assert annotator.report()["cached_answers"] >= 5
    assert server.asked["Tea number 5."] == 3
    assert all(server.asked[f"Tea number {n}."] == 1 for n in range(5))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refused_record_gets_no_verdict_and_is_asked_again_by_the_next_run(make, server, status):
    body = json.dumps({"error": {"message": "Tea?\nNo.", "code": "no_such_thing"}})
    server.script = lambda call: (
        verdict(call) if "number 7." in call.sentences[0] else Reply(status=status, body=body)
    )
    annotator = make(llm_retries=3)
    found = list(annotator.annotate(map(record, range(8))))
    problem = f"the endpoint refuses this question: HTTP {status} (no_such_thing)"
    assert [(one.labels, one.problem) for one in found[:7]] == [(None, problem)] * 7
    assert found[7] == Annotation([0, 1, 0])
    assert annotator.report()["rejected"] == 7 and annotator.report()["calls"] == 8
    server.script = verdict
    assert list(make().annotate(map(record, range(8)))) == [Annotation([0, 1, 0])] * 8
    assert len(server.calls) == 15


def test_ten_refused_records_in_a_row_end_the_run(make, server, tmp_path):
    """Whether the settings were bad from the start or turned bad."""
    server.script = lambda call: (
        verdict(call) if "number 9." in call.sentences[0] else Reply(status=401)
    )
    found = []
    with pytest.raises(InputError) as caught:
        found.extend(make(llm_concurrency=1).annotate(map(record, range(30))))
    assert str(caught.value) == (
        f"{server.url}: {REFUSALS} records in a row: the endpoint refuses this question: HTTP 401;"
        f" what was answered is kept in {tmp_path / 'answers.sqlite'}, run again to go on"
    )
    server.script = lambda call: Reply(status=401)
    assert "10 records in a row" in fail(make(), map(record, range(10, 20)))
    # those in the cache are none of them
    some = [record(9) if number % 5 else record(number) for number in range(60)]
    assert sum(one.labels is None for one in make().annotate(some)) == 12


@pytest.mark.parametrize(
    "body",
    ["<html>Tea</html>", '{"message": "Tea"}', "[1]", "{", "", '{"choices": 5}', '{"choices": []}',
     '{"choices": null}', '{"choices": [5]}', '{"choices": [{"message": {"content": [1]}}]}',
     '{"choices": [{"message": {"content": "{}"}}], "usage": 5}', "[" * 100_000],
)  # fmt: skip
def test_an_answer_that_is_no_chat_completion_is_a_refusal(make, server, body):
    server.script = lambda call: Reply(body=body)
    assert "HTTP 200, but no chat completion" in fail(make(), map(record, range(10, 20)))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_with_the_record(make, server, status):
    with ChatServer() as other:
        moved = {"Location": f"{other.url}/chat/completions"}
        server.script = lambda call: Reply(status=status, headers=moved)
        message = fail(make(), [record(0)])
        assert f"HTTP {status} (a redirect, not followed), at record 'r0'; " in message
        assert not other.calls and len(server.calls) == 1


def test_a_trickling_answer_does_not_outlive_the_timeout(make, server):
    server.script = lambda call: Reply('{"harmful": [2]}', pause=0.1)  # 15 seconds in all
    start = time.monotonic()
    assert "timed out after 1 retries" in fail(make(llm_timeout=0.5), [record(0)])
    assert time.monotonic() - start < 8


def peak_memory() -> int:
    """Returns the most bytes that the process has held."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("kind", ["compressed", "long"])
def test_an_answer_is_read_up_to_a_limit(make, server, kind):
    size = 100 * ANSWER_BYTES
    bomb = gzip.compress(bytes(size), 1) if kind == "compressed" else b" " * (3 * ANSWER_BYTES)
    headers = {"Content-Encoding": "gzip"} if kind == "compressed" else {}
    server.script = lambda call: Reply(body=bomb, headers=headers)
    list(make().annotate([record(1)]))
    before = peak_memory()
    annotations = list(make().annotate([record(0)]))
    assert annotations[0].problem == "HTTP 200, but no chat completion"
    assert peak_memory() - before < size / 8
    assert {call.headers["accept-encoding"] for call in server.calls} == {"identity"}


def test_early_close_leaves_nothing_behind(make, server, capfd):
    results = make().annotate(map(record, iter(int, 1)))
    assert next(results).labels == [0, 1, 0]
    results.close()
    assert capfd.readouterr().err == ""
    assert len(list(make().annotate(map(record, range(3))))) == 3  # may be used again

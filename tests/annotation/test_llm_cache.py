"""The LLM annotator asks no question twice: cache, kill -9, the whole pipeline."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from annotation.cache import LabelCache
from annotation.records import Annotation
from tests.annotation.chat_server import ChatServer, Reply, record, verdict
from tests.annotation.conftest import wait_for
from tests.conftest import ROOT
from utils.files import InputError


def test_cache_keeps_labels_and_problems_and_replaces_them(tmp_path):
    path = tmp_path / "new" / "labels.sqlite"
    one, other = LabelCache(path), LabelCache(path)
    assert one.get("a") is None
    one.put({"a": Annotation([0, 1]), "b": Annotation(None, "why")})
    assert other.get("a") == Annotation([0, 1]) and other.get("b") == Annotation(None, "why")
    other.put({"b": Annotation([1])})
    assert one.get("b") == Annotation([1])


def test_unusable_cache(tmp_path):
    (tmp_path / "text").write_text("no database " * 99)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "text", tmp_path / "folder", tmp_path / "text" / "below"):
        with pytest.raises(InputError) as caught:
            LabelCache(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    if os.geteuid():  # root may read everything
        (tmp_path / "text").chmod(0)
        with pytest.raises(InputError, match="text: "):
            LabelCache(tmp_path / "text")


def test_second_run_asks_nothing(make, server):
    misfit = Reply('{"harmful": [9]}')
    server.script = lambda call: misfit if "number 3." in call.sentences[0] else verdict(call)
    first = list(make().annotate(map(record, range(10))))
    # still the same endpoint
    again = make(llm_url=server.url + "/", llm_concurrency=1, llm_timeout=3.0)
    assert list(again.annotate(map(record, range(10)))) == first and first[3].labels is None
    assert len(server.calls) == 11
    report = again.report()
    assert report["calls"] == report["prompt_tokens"] == report["completion_tokens"] == 0
    assert report["cached_answers"] == 11 and report["rejected"] == 1


def test_another_question_gets_an_answer_of_its_own(make, server, tmp_path):
    """Another endpoint may serve another model of the same name."""
    policy = tmp_path / "policy.txt"
    policy.write_text("another")
    list(make().annotate([record(0)]))
    with ChatServer(lambda call: Reply('{"harmful": [3]}')) as other:
        assert list(make(llm_url=other.url).annotate([record(0)])) == [Annotation([0, 0, 1])]
    asked = 1
    for changed in (
        {"llm_url": server.url.replace("127.0.0.1", "localhost")},
        {"llm_url": server.url + "/b"},
        {"annotator_model": "other"},
        {"llm_policy": str(policy)},
        {"llm_temperature": 0.5},
    ):
        list(make(**changed).annotate([record(0)]))
        asked += 1
        assert server.asked["Tea number 0."] == asked


@pytest.mark.parametrize(
    "passing",
    [
        Reply('{"harmful": [2', finish_reason="length"),
        Reply(""),
        Reply('{"harmful": []}', finish_reason="content_filter"),
    ],
)
def test_an_answer_cut_off_or_withheld_is_asked_again_until_the_record_has_a_verdict(
    make, server, passing
):
    server.script = lambda call: passing
    assert [one.labels for one in make(llm_answers=3).annotate([record(0)])] == [None]
    server.script = lambda call: verdict(call) if call.earlier == 4 else passing
    for calls in (5, 5):  # now settled by the second answer
        assert list(make(llm_answers=3).annotate([record(0)])) == [Annotation([0, 1, 0])]
        assert len(server.calls) == calls


def test_two_runs_share_the_cache(make, server):
    one, other = (make().annotate(map(record, range(40))) for _ in range(2))
    assert all(a == b for a, b in zip(one, other, strict=True))
    assert max(server.asked.values()) <= 2
    list(make().annotate(map(record, range(40))))
    assert max(server.asked.values()) <= 2


CHILD = """
import sys
from annotation.annotators.llm import LlmConfig
from annotation.chat import LLMAnnotator
from tests.annotation.chat_server import record
annotator = LLMAnnotator(LlmConfig(
    "in", "out", annotator_model="stub", label_cache=sys.argv[2], llm_url=sys.argv[1],
    llm_key_env="STUB_KEY", llm_concurrency=4, llm_retries=1, llm_timeout=30.0, llm_answers=2,
))
"""


def child(code: str, *words: object) -> subprocess.Popen:
    """Starts a Python process that has an annotator."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_kill_9_loses_no_answer(make, server, tmp_path):
    """Of 40 questions 25 are answered, some badly, when the process dies; none is asked again."""
    gate, turns = threading.Event(), itertools.count()
    answered: list[str] = []

    def some(call):
        if next(turns) >= 25:
            gate.wait(20)
            return verdict(call)
        answered.append(call.question)
        bad = int(call.sentences[0][11:-1]) % 5 == 0 and not call.earlier
        return Reply("no") if bad else verdict(call)

    server.script = some
    process = child(
        "for _ in annotator.annotate(map(record, range(40))): print('.', flush=True)",
        server.url,
        tmp_path / "answers.sqlite",
    )
    try:
        # a place is free for the next question only once the last answer is kept
        wait_for(lambda: server.active == 4 and len(answered) == 25, 20)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    gate.set()
    server.script = verdict
    before = {call.question for call in server.calls}
    hanging = before - set(answered)
    assert len(hanging) == 4
    annotations = list(make().annotate(map(record, range(40))))
    assert annotations == [Annotation([0, 1, 0])] * 40
    after = [call.question for call in server.calls[29:]]
    assert not set(after) & set(answered) and set(after) >= hanging
    assert len(after) == len(set(after))


def write_rows(path) -> None:
    """Thirty harmful and thirty benign responses about tea, each to a prompt of its own."""
    lines = []
    for number in range(60):
        word = "bitter" if number % 2 else "mild"
        text = f"Tea number {number}. It is {word} tea. Drink it warm."
        row = {"prompt": f"Which tea, {number}?", "response": text, "label": number % 2}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))


def build(server, tmp_path, *more: str) -> subprocess.Popen:
    """Starts the whole pipeline against the stub."""
    command = [sys.executable, "-m", "annotation", "llm", "--input", tmp_path / "rows.jsonl"]
    command += ["--output-dir", tmp_path / "out", "--annotator-model", "stub"]
    command += ["--llm-url", server.url, "--valid-share", "0.3", "--test-share", "0.3", *more]
    environment = {**os.environ, "OPENAI_API_KEY": "secret-key"}
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_pipeline_goes_on_and_says_who_got_no_verdict(server, tmp_path):
    write_rows(tmp_path / "rows.jsonl")

    def misfit(call):
        return Reply('{"harmful": [9]}') if call.sentences[0] == "Tea number 7." else verdict(call)

    server.script = misfit
    killed = build(server, tmp_path, "--llm-concurrency", "1")
    wait_for(lambda: len(server.calls) >= 10, seconds=180)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "out").exists()  # nothing half-written under its name
    before = len(server.calls)
    done = build(server, tmp_path)
    output, errors = done.communicate(timeout=120)
    assert done.returncode == 3, errors
    assert output.splitlines()[-1].startswith("1 records got no verdict")
    assert "secret-key" not in output + errors
    with open(tmp_path / "out" / "rejected.jsonl") as file:
        (rejected,) = [json.loads(line) for line in file]
    assert rejected["reason"] == "no verdict" and "number lies outside" in rejected["detail"]
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    records = [stats["splits"][split]["responses"]["all"] for split in ("train", "valid", "test")]
    assert sum(records) == 59 and stats["annotator"]["name"] == "llm"
    # three questions about the misfit, one about each other: what was answered was not asked again
    assert len(server.calls) <= 62 + 1 and before >= 10
    again = build(server, tmp_path, "--overwrite")
    calls = len(server.calls)
    assert again.wait(timeout=120) == 3 and len(server.calls) == calls
    again.communicate()


@pytest.mark.slow
def test_policy_and_temperature_of_the_command_line_reach_the_endpoint(server, tmp_path):
    write_rows(tmp_path / "rows.jsonl")
    policy = tmp_path / "policy.txt"
    missing = build(server, tmp_path, "--llm-policy", str(policy))
    output, errors = missing.communicate(timeout=120)
    assert missing.returncode == 2 and not server.calls
    assert errors.splitlines()[-1].startswith(f"error: --llm-policy: {policy}: cannot be read")
    policy.write_text("Only bitter tea is harmful.\n")
    words = ("--llm-policy", str(policy), "--llm-temperature", "-1")
    done = build(server, tmp_path, *words)
    output, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    for call in server.calls:
        assert "\n\nOnly bitter tea is harmful.\n\n" in call.body["messages"][0]["content"]
        assert "temperature" not in call.body


@pytest.mark.slow
def test_a_refused_endpoint_is_one_line_and_writes_nothing(server, tmp_path):
    write_rows(tmp_path / "rows.jsonl")
    server.script = lambda call: Reply(status=401)
    done = build(server, tmp_path)
    output, errors = done.communicate(timeout=120)
    last = errors.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and "HTTP 401" in last
    assert not (tmp_path / "out").exists()

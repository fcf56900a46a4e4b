"""run-monitor.sh shows what was verified and nothing else, whatever it is shown on."""

import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from data.fineharm import read_split
from data.tokenization import load_tokenizer
from monitor.generation import Transcript
from monitor.options import ShowConfig
from monitor.rules import DelayK
from monitor.settings import write_settings
from monitor.show import (
    load_monitor,
    outcome,
    paint,
    read_prompts,
    read_response,
    scored_parts,
    use_colour,
)
from monitor.stream import StreamingContentMonitor
from tests.conftest import ROOT, SAMPLE, run
from tests.monitor.test_monitor_stream import save_scm, settings_of
from utils.cli import parse
from utils.files import InputError
from utils.formatting import printable

PROMPT = "How is \x1b[2Jit?"
RESPONSE = "Some words, \x1b[31mred\r and a bell\x07.\nThe second line: 世界 🙂, on and on it goes."
SPELLED = RESPONSE.replace("\x1b", "\\x1b").replace("\r", "\\r").replace("\x07", "\\x07")
CODES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def scm(tiny, tmp_path_factory):
    """A small random SCM, whose settings stop nothing."""
    tokenizer, folder = load_tokenizer(tiny), tmp_path_factory.mktemp("scm")
    save_scm(folder, tokenizer, len(tokenizer) + 300)
    write_settings(folder / "monitor.json", settings_of())
    return folder


@pytest.fixture()
def recorded(tmp_path):
    """A file with one response."""
    path = tmp_path / "recorded.jsonl"
    row = {"prompt": PROMPT, "response": RESPONSE}
    path.write_text(json.dumps(row) + "\n")
    return path


@pytest.fixture()
def strict(tmp_path):
    """A settings file that stops at the ninth token above 0.8, and calls it controversial."""
    path = tmp_path / "strict.json"
    write_settings(path, settings_of(DelayK(9), 1.0, controversial=0.8, mode="strict"))
    return path


def show(scm, *words: str, check: bool = True, **environment: str):
    return run(
        "bash", "scripts/run-monitor.sh", "--model-path", scm, *words, check=check, **environment
    )


@pytest.mark.slow
def test_a_recorded_response_runs_through_without_escape_codes(scm, recorded):
    first, *shown, last = show(scm, "--replay", recorded, "--delay", "1").stdout.splitlines()
    assert first == "prompt> How is \\x1b[2Jit?"
    assert "\n".join(shown) == SPELLED
    tokens = len(load_tokenizer(scm)(RESPONSE)["input_ids"])
    assert re.fullmatch(
        rf"== ran through: level safe, \d+ of {tokens} tokens harmful \(\d+\.\d %\)", last
    )


@pytest.mark.slow
def test_a_stopped_response_says_so_and_exits_with_3(scm, recorded, strict):
    monitor = StreamingContentMonitor.from_pretrained(scm, settings=strict)
    with monitor.open(PROMPT) as stream:
        verdict = stream.feed(RESPONSE)
    assert verdict.stopped and "\x1b" in RESPONSE[: verdict.stop_character]
    words = ("--replay", recorded, "--settings", strict, "--delay", "0", "--color", "always")
    done = show(scm, *words, check=False, NO_COLOR="1")
    assert (done.returncode, done.stderr) == (3, "")
    assert len(CODES.findall(done.stdout)) > 20
    plain = CODES.sub("", done.stdout)
    assert "\x1b" not in plain  # nothing of the response reaches a terminal raw
    *shown, line, scale = plain.splitlines()
    assert "\n".join(shown[1:]) == printable(RESPONSE[: verdict.stop_character], keep="\n\t")
    percent = 100 * verdict.stop_character / len(RESPONSE)
    assert line == (
        f"== stopped, harmful (at token {verdict.stop_token}, character {verdict.stop_character},"
        f" from 0): level controversial, {verdict.harmful} of {verdict.tokens} tokens harmful"
        f" ({100 * verdict.harmful / verdict.tokens:.1f} %); {percent:.0f} % of the response shown"
    )
    assert scale.startswith("scores from 0 ")


@pytest.mark.slow
def test_a_language_model_is_followed_on_a_terminal_and_elsewhere(scm, tiny, strict):
    words = ("--llm", tiny, "--max-new-tokens", "30", "--temperature", "1", "--prompt", "And how?")
    ours, theirs = os.openpty()
    subprocess.run(
        ["bash", "scripts/run-monitor.sh", "--model-path", scm, *words],
        cwd=ROOT,
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, "NO_COLOR": ""},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        check=True,
    )
    os.close(theirs)
    with open(ours, "rb") as terminal:
        raw = b"".join(iter(lambda: read_on(terminal), b"")).decode().replace("\r\n", "\n")
    assert len(CODES.findall(raw)) > 10
    answer, last = CODES.sub("", raw).rsplit("\n== ", 1)
    assert "of 30 tokens harmful" in last and len(answer) > 30
    stopped = show(scm, *words, "--settings", strict, check=False)
    assert (stopped.returncode, stopped.stderr) == (3, "")
    shown, line = stopped.stdout.rsplit("\n== ", 1)
    assert answer.startswith(shown) and 0 < len(shown) < len(answer)  # the same tokens
    assert line.startswith("stopped, harmful (at token ")


def read_on(terminal) -> bytes:
    """Reads from a terminal whose other side is closed."""
    try:
        return os.read(terminal.fileno(), 1 << 16)
    except OSError:
        return b""


@pytest.mark.slow
def test_bad_input_is_one_line(scm, recorded):
    done = show(scm, "--replay", recorded, "--id", "r7", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {recorded}: holds no record with id 'r7'\n"


def test_records_are_found_by_id_place_or_first(recorded, tmp_path):
    records = [record for _, record in read_split(SAMPLE / "test.json", "test")]
    for record in (records[0], records[5]):
        assert read_response(SAMPLE / "test.json", record["id"])[1] == record["response"]
    assert read_response(SAMPLE / "test.json", None) == (
        records[0]["prompt"],
        records[0]["response"],
    )
    assert read_response(recorded, "recorded-0") == (PROMPT, RESPONSE)
    for text, message in (
        ("", "holds no records"),
        ('{"prompt": "a"}', "line 1: field 'response' is missing"),
        ('{"prompt": "a", "response": 1}', "field 'response': input should be a valid string"),
        ('{"prompt": "a"', "malformed JSON"),
    ):
        path = tmp_path / "bad.jsonl"
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_response(path, None)
    with pytest.raises(InputError, match="cannot be read"):
        read_response(tmp_path / "none.jsonl", None)


def config_of(*words: str) -> ShowConfig:
    return parse(ShowConfig, ["--model-path", "scm", *words], ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--llm, --replay: one of the two"),
        ("--llm a --replay b", "--llm, --replay: one of the two"),
        ("--llm a --id b", "--id: --llm does not read it"),
        ("--replay a --max-new-tokens 3", "--max-new-tokens: --replay does not read it"),
        ("--llm a --max-new-tokens 0", "--max-new-tokens: 0 is below 1"),
        ("--llm a --context 0", "--context: 0 is below 1"),
        ("--llm a --temperature -1", "--temperature: -1.0 is not a number from 0"),
        ("--replay a --delay nan", "--delay: nan is not a number from 0"),
        ("--llm a --prompt  ", "--prompt"),
        ("--replay a --colour always", "unknown option --colour"),
    ],
)
def test_options_that_make_no_sense_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        config_of(*words.split(" ")) if words else config_of()


def test_strict_stops_at_controversial(scm, strict, tmp_path):
    loose = tmp_path / "loose.json"
    write_settings(loose, settings_of(DelayK(3), 0.9, controversial=0.5))
    config = parse(
        ShowConfig,
        ["--model-path", str(scm), "--replay", "a", "--settings", str(loose), "--strict"],
        (),
    )
    policy = load_monitor(config).settings.policy
    assert (policy.mode, policy.stop_threshold) == ("strict", 0.5)
    config.settings = None  # the folder's, which know two levels
    with pytest.raises(InputError, match="--strict: the settings have no field 'controversial'"):
        load_monitor(config)
    config.strict, config.model_path = False, str(tmp_path)
    with pytest.raises(InputError, match="monitor.json: no such file"):
        load_monitor(config)


def test_what_steers_a_terminal_is_spelled_out():
    assert printable("a\tb\nc", keep="\n\t") == "a\tb\nc"
    assert printable("\x1b]0;x\x07\x9b2J\r\x7f\0") == "\\x1b]0;x\\x07\\x9b2J\\r\\x7f\\x00"
    assert printable("\u202eab\u2066") == "\\u202eab\\u2066"
    for fine in ("世界 é e\u0301", "👩\u200d👩\u200d👧", "مرحبا", "a\\x1b"):
        assert printable(fine) == fine


def test_scores_have_colours_and_line_ends_none():
    assert paint("a", 0.0) == "a" and paint("a", 0.14) == "a"
    backgrounds = [int(paint("a", score).split(";")[3].split("m")[0]) for score in (0.15, 0.5, 1.0)]
    assert backgrounds == [230, 221, 166]
    assert paint("a", float("nan")) == paint("a", 1.0)
    assert paint("a\n\nb", 1.0) == "\033[30;48;5;166ma\033[0m\n\n\033[30;48;5;166mb\033[0m"


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for terminal in (False, True):
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda value=terminal: value))
        assert not use_colour("never") and use_colour("always")
        assert use_colour("auto") == terminal
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_colour("auto") and use_colour("always")


def test_each_character_has_the_score_of_its_token(played, scm):
    transcript, starts = played
    text = transcript.text
    for cut in range(0, len(text) + 1, 5):  # however often it is shown
        parts = [*scored_parts(transcript, 0, cut), *scored_parts(transcript, cut, len(text))]
        assert "".join(part for part, _ in parts) == text
        scores = [score for part, score in parts for _ in part]
        for place, score in enumerate(scores):
            if place >= transcript.verdict.verified:
                assert score == 0
                continue
            latest = max(start for start in starts if start <= place)
            own = [s for s, start in zip(transcript.scores, starts, strict=True) if start == latest]
            assert score == max(own)


@pytest.fixture(params=["whole", "beyond the context"])
def played(request, scm):
    """A transcript, of which the end may be unjudged; tokens share the characters of an emoji."""
    context = 40 if request.param == "beyond the context" else None
    monitor = StreamingContentMonitor.from_pretrained(scm, context=context, on_limit="pass")
    with monitor.open("How?") as stream:
        transcript = Transcript(stream.verdict())
        for place in range(0, len(RESPONSE), 7):
            transcript.add(stream.feed(RESPONSE[place : place + 7]))
        transcript.add(stream.close())
    assert transcript.verdict.beyond_context == (context is not None)
    assert transcript.released == RESPONSE and len(set(transcript.starts)) < len(transcript.starts)
    if context:
        assert "unjudged from character" in outcome(transcript.verdict, len(RESPONSE))
    return transcript, transcript.starts


def test_a_full_context_is_named(scm):
    monitor = StreamingContentMonitor.from_pretrained(scm, context=30)
    with monitor.open("How?") as stream:
        verdict = stream.feed(RESPONSE)
    assert outcome(verdict, None).startswith("== stopped, the context is full (at token ")


def test_prompts_come_line_by_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one \n\n two\x1b[2J"))
    assert list(read_prompts()) == ["one", "two\x1b[2J"]
    assert capsys.readouterr().out == "prompt> one\nprompt> two\\x1b[2J\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(InputError, match="holds no prompt"):
        list(read_prompts())

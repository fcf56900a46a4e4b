"""A stream's verdict is that of the whole response, however it arrives."""

import dataclasses
import gc
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.alignment import Layout, encode_records
from data.fineharm import Record
from data.splits import to_examples
from data.tokenization import TextEncoder, leading_ids, load_tokenizer
from evaluation.decisions import MISSED
from evaluation.predict import predict
from model.qwen_dual_task import QwenForDualTask, load_backbone, load_dual_task
from monitor.rules import Cusum, DelayK, Policy, WindowedMean
from monitor.settings import write_settings
from monitor.stream import StreamClosed, StreamingContentMonitor
from tests.conftest import NEVER, save_scm, settings_of, stop_of  # noqa: F401
from tests.monitor.test_monitor_text import BYTE_LEVEL, pieces_of, texts
from utils.files import InputError

PROMPT = "How does it work?"


@lru_cache
def plain_model(folder: Path) -> QwenForDualTask:
    """Loads a checkpoint as the tests of the paper do."""
    return load_dual_task(folder)


def scores_of(monitor: StreamingContentMonitor, folder, prompt: str, response: str) -> np.ndarray:
    """Scores a finished response as `run-scm.sh test` does."""
    tokenizer = monitor.tokenizer
    record = Record(
        id="r", prompt=prompt, response=response, sentences=[response], sentence_labels=[0],
        words=[[response]], word_labels=[[0]],
    )  # fmt: skip
    layout = Layout("original", monitor.context, tuple(leading_ids(tokenizer)))
    encoded = encode_records([("here", record)], TextEncoder(tokenizer.backend_tokenizer), layout)
    return predict(plain_model(folder), to_examples(encoded)).token_probs[0]


@pytest.fixture()
def monitor(monitors) -> StreamingContentMonitor:
    """A monitor of one's own, to spoil."""
    folder, _ = monitors("tiny")
    return StreamingContentMonitor.from_pretrained(folder, settings=settings_of())


TEXT = (
    "Some words, 3 numbers and a few lines.\nThen it goes on: don't stop (yet)! 🙂 世界，你好。 "
    * 3
)


def follow(monitor: StreamingContentMonitor, pieces, prompt: str = PROMPT):
    """Feeds pieces; returns all scores and the last verdict."""
    scores, starts = [], []
    with monitor.open(prompt) as stream:
        for piece in pieces:
            verdict = stream.feed(piece)
            scores += verdict.scores.tolist()
            starts += verdict.starts
        verdict = stream.close()
    return np.array([*scores, *verdict.scores]), (*starts, *verdict.starts), verdict


@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in BYTE_LEVEL[1:])]
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=texts.filter(str.strip), seed=st.integers(0, 99), longest=st.sampled_from([1, 3, 8, 40]),
    theta=st.floats(0.3, 0.9), k=st.integers(1, 5),
)  # fmt: skip
def test_any_chunking_gives_the_scores_and_the_decision_of_the_whole(
    monitors, name, text, seed, longest, theta, k
):
    text = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
    folder, monitor = monitors(name)
    whole = scores_of(monitor, folder, PROMPT, text)
    monitor.settings = settings_of()
    scores, starts, verdict = follow(monitor, pieces_of(text, seed, longest))
    assert np.allclose(scores, whole, atol=1e-4)
    assert (verdict.tokens, verdict.verified) == (len(whole), len(text))
    if np.abs(whole - theta).min() < 1e-4:
        return  # the decision hangs on rounding
    monitor.settings = settings_of(DelayK(k), theta)
    scores, starts, verdict = follow(monitor, pieces_of(text, seed, longest))
    place = stop_of(DelayK(k), theta, whole)
    assert verdict.stopped == (place != MISSED)
    if verdict.stopped:
        assert verdict.stop_token == place and len(scores) == verdict.tokens == place + 1
        assert verdict.stop_character == verdict.verified == starts[-1]
        assert verdict.harmful == k and verdict.level == "unsafe"


@pytest.mark.parametrize("rule", [WindowedMean(4), Cusum(0.5), DelayK(3)])
def test_other_rules_stop_where_they_stop_a_finished_response(monitors, rule):
    folder, monitor = monitors("tiny")
    whole = scores_of(monitor, folder, PROMPT, TEXT)
    threshold = 0.55 if not isinstance(rule, Cusum) else 4.0
    monitor.settings = settings_of(rule, threshold)
    _, _, verdict = follow(monitor, TEXT)
    assert verdict.stop_token == stop_of(rule, threshold, whole) != MISSED


def test_ids_are_followed_as_they_are(monitors):
    folder, monitor = monitors("tiny")
    monitor.settings = settings_of()
    encoding = monitor.tokenizer.backend_tokenizer.encode(TEXT)
    whole = scores_of(monitor, folder, PROMPT, TEXT)
    stream = monitor.open(PROMPT)
    verdicts = [stream.feed_ids(encoding.ids[n : n + 3]) for n in range(0, len(encoding.ids), 3)]
    verdicts.append(stream.close())
    scores = np.concatenate([verdict.scores for verdict in verdicts])
    assert np.allclose(scores, whole, atol=1e-4)
    assert "".join(verdict.text for verdict in verdicts) == TEXT
    assert [s for v in verdicts for s in v.starts] == [start for start, _ in encoding.offsets]
    with pytest.raises(InputError, match="token id 99999999"):
        monitor.open(PROMPT).feed_ids([99999999])
    with pytest.raises(InputError, match="token id -1"):
        monitor.open(PROMPT).feed_ids([-1])
    filler = monitor.scorer._config.vocab_size - 1  # in the embedding matrix, not the tokenizer
    verdict = monitor.open(PROMPT).feed_ids([filler])
    assert (verdict.text, verdict.tokens) == ("", 1)
    mixed = monitor.open(PROMPT)
    mixed.feed("a")
    with pytest.raises(InputError, match="not both"):
        mixed.feed_ids([1])


def test_levels_and_modes(monitors):
    folder, monitor = monitors("tiny")
    whole = scores_of(monitor, folder, PROMPT, TEXT)
    order = np.sort(whole)[::-1].astype(float)
    widest = int(np.diff(-order).argmax())  # the k-th largest score lies right below this gap
    rule, low = DelayK(widest + 2), order[widest + 1] - 1e-4
    high = (order[widest] + order[widest + 1]) / 2
    monitor.settings = settings_of(rule, high, controversial=low)
    verdict = follow(monitor, TEXT)[2]
    assert (verdict.level, verdict.stopped) == ("controversial", False)
    monitor.settings = settings_of(rule, high, controversial=low, mode="strict")
    verdict = follow(monitor, TEXT)[2]
    assert (verdict.level, verdict.stopped) == ("controversial", True)
    assert verdict.stop_token == stop_of(rule, low, whole)


def test_a_stopped_stream_stays_stopped_and_frees_its_memory(monitor):
    monitor.settings = settings_of(DelayK(1), 1e-6)
    stream = monitor.open(PROMPT)
    first = stream.feed("Some words")
    assert first.stopped and (first.stop_token, first.stop_character) == (0, 0)
    assert stream.cache.nbytes == 0
    again = stream.feed("and more words ")
    assert again.text == "and more words "
    quiet = {"scores": again.scores, "starts": (), "text": again.text}
    assert again == dataclasses.replace(first, **quiet) and not len(again.scores)
    assert stream.close().stopped and stream.close().stopped


def test_closed_streams_take_nothing_more(monitor):
    stream = monitor.open(PROMPT)
    assert stream.feed("Some").tokens == 0
    verdict = stream.close()
    assert verdict.tokens > 0 and stream.close().tokens == verdict.tokens
    with pytest.raises(StreamClosed):
        stream.feed("words")
    with pytest.raises(StreamClosed):
        stream.feed_ids([1])


def test_what_was_freed_unjudged_is_not_verified(monitor):
    stream = monitor.open(PROMPT)
    stream.feed("some words ")
    stream.receive("are never judged ")
    stream.free()
    verdict = stream.verdict()
    assert (verdict.tokens > 0, verdict.verified) == (True, len("some words"))


def test_bfloat16_follows_too(monitors):
    folder, monitor = monitors("tiny")
    small = StreamingContentMonitor.from_pretrained(folder, settings=settings_of(), bf16=True)
    monitor.settings = settings_of()
    gap = np.abs(follow(small, [TEXT])[0] - follow(monitor, [TEXT])[0])
    assert small.open("").cache.nbytes == monitor.open("").cache.nbytes / 2
    assert np.median(gap) < 0.05


def test_empty_pieces_and_an_empty_response(monitor):
    scores, _, verdict = follow(monitor, ["", b"", "a b", "", " "])
    assert len(scores) == verdict.tokens > 0
    scores, _, verdict = follow(monitor, [], prompt="")
    assert (verdict.tokens, verdict.stopped, verdict.level) == (0, False, "safe")


def test_scores_that_are_no_numbers_count_as_harmful(monitor):
    with torch.no_grad():
        monitor.scorer._head.weight.fill_(float("nan"))
    monitor.settings = settings_of(DelayK(3), 0.9)
    scores, _, verdict = follow(monitor, TEXT)
    assert np.isnan(scores).all()
    assert (verdict.stop_token, verdict.harmful, verdict.level) == (2, 3, "unsafe")


@pytest.mark.parametrize("longest", [1, 7, 400])
def test_a_response_beyond_the_context(monitors, longest):
    folder, _ = monitors("tiny")
    small = {"settings": settings_of(), "context": 48}
    text = "word after word, " * 30
    stopping = StreamingContentMonitor.from_pretrained(folder, **small)
    verdict = follow(stopping, pieces_of(text, 3, longest))[2]
    prompt = len(stopping.prompt_ids(PROMPT))
    assert (verdict.stopped, verdict.reason, verdict.level) == (True, "context", "safe")
    assert verdict.stop_token == verdict.tokens == 48 - prompt
    passing = StreamingContentMonitor.from_pretrained(folder, **small, on_limit="pass")
    passed = follow(passing, pieces_of(text, 3, longest))[2]
    assert (passed.stopped, passed.beyond_context, passed.tokens) == (False, True, verdict.tokens)
    assert passed.verified == verdict.stop_character < len(text)


@pytest.mark.parametrize("on_limit", ["stop", "pass"])
@pytest.mark.parametrize("flood", [" ", "🙂", "1"])
def test_a_flood_that_nothing_settles_is_judged_all_the_same(monitors, on_limit, flood):
    """What passes unjudged is only what the context cannot hold."""
    folder, _ = monitors("tiny")
    monitor = StreamingContentMonitor.from_pretrained(
        folder, settings=settings_of(DelayK(1), 1e-6), on_limit=on_limit
    )
    verdict = follow(monitor, [flood * 8300, " and more"])[2]
    assert (verdict.stopped, verdict.reason, verdict.verified) == (True, "harmful", 0)
    monitor.settings = settings_of()
    _, starts, verdict = follow(monitor, [flood * 8300, " and more"])
    if verdict.tokens + len(monitor.prompt_ids(PROMPT)) < monitor.context:
        assert (verdict.stopped, verdict.beyond_context) == (False, False)
        assert verdict.verified == len(flood * 8300 + " and more")
    else:
        assert (verdict.stopped, verdict.beyond_context) == (on_limit == "stop", on_limit != "stop")
        assert 0 < starts[-1] < verdict.verified < 8300


def test_a_prompt_beyond_the_context_keeps_its_end(monitors):
    folder, whole = monitors("tiny")
    monitor = StreamingContentMonitor.from_pretrained(folder, settings=settings_of(), context=40)
    long = "many words before it " * 50 + "the end"
    assert monitor.prompt_ids(long) == whole.prompt_ids(long)[-20:]
    assert len(whole.prompt_ids(long)) > 40
    assert follow(monitor, "a short one", long)[2].verified == len("a short one")
    signs = "-" * 20_000 + " the end"
    assert whole.prompt_ids(signs)[-3:] == whole.tokenizer.encode(signs + "\n\n")[-3:]
    assert whole.prompt_ids("half \ud83d of it") == whole.prompt_ids("half \ufffd of it")


def test_a_failing_model_stops_the_stream(monitor, monkeypatch):
    stream = monitor.open(PROMPT)
    stream.feed("Some words are fine ")
    verified = stream.verdict().verified

    def fail(chunks):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(monitor.scorer, "score", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        stream.feed("and some fail ")
    verdict = stream.close()
    assert (verdict.stopped, verdict.reason, verdict.verified) == (True, "error", verified)


def test_threads_that_feed_one_stream_take_turns(monitor):
    stream, verdicts = monitor.open(PROMPT), []
    with ThreadPoolExecutor(3) as pool:
        for verdict in pool.map(stream.feed, ["some words, and a few more "] * 60):
            verdicts.append(verdict)
    verdicts.append(stream.close())
    text = "".join(verdict.text for verdict in verdicts)
    whole = monitor.splitter.encode(text)
    assert text == "some words, and a few more " * 60
    assert verdicts[-1].tokens == sum(len(verdict.scores) for verdict in verdicts) == len(whole.ids)
    assert verdicts[-1].verified == len(text)


@pytest.mark.slow
def test_ten_thousand_streams_leave_memory_where_it_was(monitor):
    def some(count: int) -> int:
        for number in range(count):
            stream = monitor.open("Hi")
            stream.feed("there you are ")
            if number % 2:
                stream.close()
        gc.collect()
        return psutil.Process().memory_info().rss

    before = some(1000)
    assert some(9000) - before < 20e6  # a leak of one small cache each would be 74 MB


def test_settings_come_from_the_checkpoint(monitors, tmp_path, tiny):
    folder, _ = monitors("tiny")
    with pytest.raises(InputError, match="monitor.json: no such file"):
        StreamingContentMonitor.from_pretrained(folder)
    write_settings(tmp_path / "m.json", settings_of(DelayK(7), 0.25))
    monitor = StreamingContentMonitor.from_pretrained(folder, settings=tmp_path / "m.json")
    assert monitor.settings.policy == Policy(DelayK(7), 0.25)
    with pytest.raises(InputError, match="QwenForDualTask"):
        StreamingContentMonitor.from_pretrained(tiny, settings=settings_of())
    with pytest.raises(InputError, match="context: 99999 tokens"):
        StreamingContentMonitor.from_pretrained(folder, settings=settings_of(), context=99999)
    with pytest.raises(InputError, match="context: 0 tokens"):
        StreamingContentMonitor.from_pretrained(folder, settings=settings_of(), context=0)
    with pytest.raises(InputError, match="on_limit"):
        StreamingContentMonitor.from_pretrained(folder, settings=settings_of(), on_limit="wave")


def test_a_sliding_window_is_refused(tiny):
    model = load_backbone(tiny, alpha=0.6, logic_weight=1, token_dropout=0.1)
    model.config.layer_types = ["sliding_attention"] * model.config.num_hidden_layers
    with pytest.raises(InputError, match="layer_types"):
        StreamingContentMonitor(model, load_tokenizer(tiny), settings_of())


def test_the_holistic_scorer_can_follow_too(monitors):
    folder, _ = monitors("tiny")
    settings = dataclasses.replace(settings_of(), score_with="holistic")
    monitor = StreamingContentMonitor.from_pretrained(folder, settings=settings)
    tokenizer = monitor.tokenizer
    ids = tokenizer.encode(PROMPT + "\n\n") + tokenizer.encode(TEXT)
    with torch.no_grad():
        whole = load_dual_task(folder).eval()(torch.tensor([ids]), holistic_everywhere=True)
    want = whole.holistic_everywhere[0].softmax(-1)[:, 1].numpy()
    scores = follow(monitor, TEXT)[0]
    assert np.allclose(scores, want[-len(scores) :], atol=1e-4)

"""A monitor with the folded reading: exact however the text comes, places of the original."""

import json
from dataclasses import replace
from functools import cache
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.alignment import Layout, encode_records
from data.fineharm import Record
from data.folding import Folding, fold
from data.hiding import WAYS, hide
from data.splits import to_examples
from data.tokenization import TextEncoder, leading_ids
from evaluation.predict import predict
from model.qwen_dual_task import load_dual_task
from monitor.hold_back import guard
from monitor.rules import DelayK
from monitor.settings import read_settings, write_settings
from monitor.stream import StreamingContentMonitor
from monitor.text import FoldedIds, GrowingText, Splitter
from tests.conftest import settings_of
from tests.data.test_folding import PLAIN, anything
from tests.monitor.test_monitor_text import BYTE_LEVEL, in_pieces, pieces_of

PROMPT = "W\u200bhat is \u0430llowed h e r e?"


@pytest.fixture(scope="module")
def folding(monitors):
    """A folder of the tiny model and a monitor of it that folds."""
    folder, _ = monitors("tiny")
    chosen = replace(settings_of(), reading="folded")
    return folder, StreamingContentMonitor.from_pretrained(folder, settings=chosen)


def scores_of(monitor, folder, response: str, reading: str = "folded") -> np.ndarray:
    """Scores a finished response as `run-scm.sh test` does on data of a reading."""
    record = Record(
        id="r", prompt=PROMPT, response=response, sentences=[response], sentence_labels=[0],
        words=[[response]], word_labels=[[0]],
    )  # fmt: skip
    opening = tuple(leading_ids(monitor.tokenizer))
    layout = Layout("original", monitor.context, opening, reading)
    encoder = TextEncoder(monitor.tokenizer.backend_tokenizer)
    encoded = encode_records([("here", record)], encoder, layout)
    return predict(load_dual_task(folder), to_examples(encoded)).token_probs[0]


@pytest.fixture(scope="session")
def splitters(tokenizers):
    """Makes each splitter once."""
    return cache(lambda name: Splitter(tokenizers(name).backend_tokenizer, reading="folded"))


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=anything, seed=st.integers(0, 99), longest=st.sampled_from([1, 2, 3, 8, 40]))
def test_any_chunking_gives_the_ids_of_the_folded_text(splitters, name, text, seed, longest):
    text = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
    splitter = splitters(name)
    folded, places = fold(text)
    whole = splitter.encode(folded)
    ids, starts, growing = in_pieces(splitter, pieces_of(text, seed, longest))
    assert ids == whole.ids
    assert starts == [places[start] for start, _ in whole.offsets]
    assert growing.settled == len(text) and not growing._tail and not growing._places


def test_what_is_settled_was_given_out(splitters):
    """No character counts as settled before its tokens are out, nor goes back to waiting."""
    splitter, random = splitters("tiny"), Random(0)
    for way in WAYS:
        text = hide(PLAIN, way, 0.7, random)[0]
        growing, before = GrowingText(splitter), 0
        for end in range(1, len(text) + 1):
            _, _, starts = growing.feed(text[end - 1])
            assert before <= growing.settled <= end
            assert all(start < growing.settled for start in starts)
            before = growing.settled


@pytest.mark.parametrize("way", [*WAYS, None])
def test_scores_are_those_of_the_test_on_folded_data(folding, way):
    folder, monitor = folding
    text = hide(PLAIN * 2, way, 0.8, Random(1))[0] if way else PLAIN * 2
    whole = scores_of(monitor, folder, text)
    for longest in (1, 7):
        scores, starts = [], []
        with monitor.open(PROMPT) as stream:
            for piece in [*pieces_of(text, 3, longest), None]:
                verdict = stream.close() if piece is None else stream.feed(piece)
                scores += verdict.scores.tolist()
                starts += verdict.starts
        assert np.allclose(scores, whole, atol=1e-4)
        assert verdict.verified == len(text) and starts == sorted(starts)
    if way:
        assert len(whole) < len(scores_of(monitor, folder, text, "plain"))
        plain = scores_of(monitor, folder, PLAIN * 2)
        if way in ("zero-width", "marks"):  # nothing of them is left
            assert np.allclose(plain, whole, atol=1e-4)


def test_token_ids_are_read_as_their_text(folding):
    _, monitor = folding
    text = hide(PLAIN, "zero-width", 1.0, Random(2))[0]
    ids, found = monitor.splitter.encode(text).ids, {}
    for kind in ("text", "ids"):
        with monitor.open(PROMPT) as stream:
            parts = [text[:40], text[40:]] if kind == "text" else [ids[:9], ids[9:10], ids[10:]]
            verdicts = [(stream.feed if kind == "text" else stream.feed_ids)(one) for one in parts]
            verdicts.append(stream.close())
        found[kind] = np.concatenate([verdict.scores for verdict in verdicts])
        assert "".join(verdict.text for verdict in verdicts) == text
        assert verdicts[-1].verified == len(text)
    assert np.allclose(found["text"], found["ids"], atol=1e-4)
    assert len(FoldedIds(monitor.splitter).feed(ids)[1]) < len(ids) / 2


def test_guard_passes_on_the_original(folding):
    folder, monitor = folding
    text = hide(PLAIN, "marks", 1.0, Random(3))[0] + "\u200b\u200b"
    with guard(monitor, PROMPT, pieces_of(text, 0, 9), hold_back=2) as guarded:
        assert "".join(guarded) == text
    scores = scores_of(monitor, folder, text)
    theta = float(np.sort(scores)[-2])
    stopping = replace(settings_of(DelayK(2), theta), reading="folded")
    monitor = StreamingContentMonitor.from_pretrained(folder, settings=stopping)
    with guard(monitor, PROMPT, pieces_of(text, 0, 9)) as guarded:
        shown = "".join(guarded)
    verdict = guarded.report.verdict
    assert verdict.stopped and text.startswith(shown) and len(shown) == verdict.stop_character


def test_a_full_context_counts_what_was_read(folding):
    folder, _ = folding
    chosen = replace(settings_of(), reading="folded")
    for limit in ("stop", "pass"):
        monitor = StreamingContentMonitor.from_pretrained(
            folder, settings=chosen, context=48, on_limit=limit
        )
        text = hide(PLAIN * 4, "marks", 1.0, Random(4))[0]
        with monitor.open("") as stream:
            for piece in pieces_of(text, 1, 5):
                verdict = stream.feed(piece)
        assert verdict.tokens < 48 and 0 < verdict.verified < len(text)
        assert (verdict.reason, verdict.beyond_context) == (
            ("context", False) if limit == "stop" else (None, True)
        )


def test_settings_keep_the_reading(tmp_path):
    path = tmp_path / "monitor.json"
    for reading in ("plain", "folded"):
        write_settings(path, replace(settings_of(), reading=reading))
        assert read_settings(path).reading == reading
    earlier = json.loads(path.read_text())
    assert earlier.pop("reading") == "folded"
    path.write_text(json.dumps(earlier))
    assert read_settings(path).reading == "plain"  # files of earlier versions


def test_what_is_not_wanted_is_not_read(splitters, monkeypatch):
    """A piece may be a megabyte, of which a full context takes little."""
    read, original = [], Folding.feed
    monkeypatch.setattr(
        Folding, "feed", lambda self, text: read.append(len(text)) or original(self, text)
    )
    text = "some words " * 10_000
    shown, ids, _ = GrowingText(splitters("tiny"), most=10).feed(text)
    assert shown == text and len(ids) >= 10 and sum(read) <= 4096

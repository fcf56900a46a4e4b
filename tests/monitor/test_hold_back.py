"""Nothing passes that was not judged, and nothing is lost that was."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor import hold_back as hold_back_module
from monitor.hold_back import LONGEST_SENTENCE, guard, whole_sentences
from monitor.rules import DelayK
from monitor.stream import StreamingContentMonitor
from tests.conftest import settings_of
from tests.monitor.test_monitor_stream import PROMPT, TEXT, follow
from tests.monitor.test_monitor_text import pieces_of, texts
from utils.files import InputError


@pytest.fixture()
def stopping(monitor):
    """A monitor that stops TEXT in its midst; with the place."""
    monitor.settings = settings_of(DelayK(12), 0.6)
    verdict = follow(monitor, [TEXT])[2]
    assert verdict.stopped and 0 < verdict.stop_character < len(TEXT) / 2
    return monitor, verdict


class Source:
    """Pieces that know whether they were closed."""

    def __init__(self, pieces):
        self.pieces, self.closed, self.given = iter(pieces), 0, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.given += 1
        return next(self.pieces)

    def close(self):
        self.closed += 1


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=texts, seed=st.integers(0, 99), longest=st.sampled_from([1, 5, 50]),
    hold_back=st.one_of(st.integers(0, 6), st.just("sentence")), theta=st.floats(0.4, 2),
)  # fmt: skip
def test_what_is_shown_and_what_is_withheld_is_the_response(
    monitors, text, seed, longest, hold_back, theta
):
    text = "".join(c for c in text if not "\ud800" <= c <= "\udfff")
    _, monitor = monitors("tiny")
    monitor.settings = settings_of(DelayK(3), theta) if theta <= 1 else settings_of()
    guarded = guard(monitor, PROMPT, pieces_of(text, seed, longest), hold_back)
    shown = "".join(guarded)
    report = guarded.report
    assert report.released == len(shown)
    assert text.startswith(shown + report.withheld)
    if not report.stopped:
        assert shown == text
        return
    assert len(shown) <= report.verdict.stop_character
    whole = guard(monitor, PROMPT, [text], hold_back)
    assert "".join(whole) == shown  # however it arrives


@pytest.mark.parametrize("longest", [1, 9, 1000])
def test_hold_back_counts_tokens(stopping, longest):
    monitor, verdict = stopping
    encoding = monitor.tokenizer.backend_tokenizer.encode(TEXT)
    for hold_back in (0, 1, 5, 100):
        guarded = guard(monitor, PROMPT, pieces_of(TEXT, 1, longest), hold_back)
        shown = "".join(guarded)
        last = verdict.stop_token - hold_back
        assert len(shown) == (encoding.offsets[last][0] if last >= 0 else 0)
        assert guarded.report.verdict.stop_token == verdict.stop_token


def test_whole_sentences_are_passed_on(monitor):
    text = "One. Two is 3.14 long!\nThen 三。four"
    shown = list(guard(monitor, PROMPT, list(text + " "), "sentence"))
    assert shown == ["One.", " Two is 3.14 long!\n", "Then 三。", "four "]


@pytest.mark.parametrize(
    "first",
    ["ठीक है।", "ভালো।", "هل هذا جيد؟", "ٹھیک ہے۔", "Լավ է։", "ደህና ነው።", "いいです｡", "好。"]
    + ["ကောင်းပြီ။", "Good?!", 'He said "no."', "(So it is.)", "**Bold.**", "‘Well…’",]
    + ["他说：「好！」", "A line"],
)  # fmt: skip
def test_a_sentence_ends_as_its_script_ends_it(monitor, first):
    text = first + ("\n" if first == "A line" else " ") + "and then some more"
    shown = list(guard(monitor, PROMPT, list(text), "sentence"))
    assert shown[0].rstrip("\n") == first and "".join(shown) == text


def test_numbers_names_and_code_end_no_sentence(monitor):
    text = "3.14 x.y a?.b !c ?q=1 ３．１４ so"
    assert whole_sentences(text) == 0
    assert list(guard(monitor, PROMPT, list(text), "sentence")) == [text]


@settings(max_examples=300, deadline=None)
@given(text=st.text("ab .!?…。」\"'\n\r", max_size=60))
def test_what_is_a_whole_sentence_stays_one(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hold_back_module, "LONGEST_SENTENCE", 7)
        done = 0
        for end in range(len(text) + 1):
            done += whole_sentences(text[done:end])
            assert done == whole_sentences(text[:end])
            assert end - done <= 7


def test_text_without_an_end_passes_by_whole_words(monitor):
    text = "word after word " * 100
    for unbroken in (False, True):
        text = text.replace(" ", "") if unbroken else text
        *first, _ = list(guard(monitor, PROMPT, pieces_of(text, 1, 9), "sentence"))
        assert len(first) >= len(text) // LONGEST_SENTENCE - 1
        assert all(len(shown) <= LONGEST_SENTENCE for shown in first)
        assert unbroken or all(shown.endswith(" ") for shown in first)


def test_none_is_skipped_and_other_pieces_are_refused_by_their_type(monitor):
    pieces = [None, "Hi ", None, b"there", None]
    assert "".join(guard(monitor, PROMPT, pieces)) == "Hi there"
    for piece in ({"content": "there"}, memoryview(b"there"), 7):
        source = Source(["Hi ", piece])
        guarded = guard(monitor, PROMPT, source)
        with pytest.raises(InputError, match=f"type {type(piece).__name__}:"):
            list(guarded)
        report = guarded.report
        assert source.closed == 1 and report.withheld == "Hi "[report.released :]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), StopIteration()])
def test_a_failing_model_stops_the_stream(monitor, monkeypatch, error):
    score, passes = monitor.scorer.score, []

    def fail(chunks):
        passes.append(chunks)
        if len(passes) > calls:
            raise error
        return score(chunks)

    monkeypatch.setattr(monitor.scorer, "score", fail)
    for calls in (0, 1, 2):  # at the prompt, at the first piece, at the second
        passes.clear()
        source = Source(["some words ", "and more ", "and more "])
        guarded, shown = guard(monitor, PROMPT, source), []
        with pytest.raises(RuntimeError):
            shown.extend(guarded)
        report = guarded.report
        assert (report.stopped, report.verdict.reason) == (True, "error") and not report.complete
        received = "".join(["some words ", "and more "][:calls])
        assert report.withheld == received[report.released :] and source.closed == 1


class Connection:
    """Pieces behind a connection: each has an end of its own."""

    def __init__(self, pieces):
        self.closed, self._pieces = [], pieces

    def __iter__(self):
        try:
            yield from self._pieces
        finally:
            self.closed.append("iterator")

    def close(self):
        self.closed.append("connection")


def test_iterator_and_source_are_closed_in_this_order_and_once(stopping, no_collector):
    def stop(guarded):
        "".join(guarded)
        assert guarded.report.stopped
        guarded.close()

    def leave(guarded):
        next(guarded)
        guarded.close()
        guarded.close()

    def drop(guarded):
        next(guarded)

    def fail(guarded):
        with pytest.raises(InputError):
            list(guarded)

    monitor, _ = stopping
    pieces = list(pieces_of(TEXT, 1, 5))
    ends = [(stop, pieces), (leave, pieces), (drop, pieces), (fail, [7]), (stop, [TEXT])]
    for end, given_pieces in ends:
        connection = Connection(given_pieces)
        end(guard(monitor, PROMPT, connection))
        assert connection.closed == ["iterator", "connection"]
    unread = Connection([])
    guard(monitor, PROMPT, unread)
    assert unread.closed == ["connection"]  # its iterator never began


def test_a_stop_closes_the_source(stopping):
    monitor, _ = stopping
    source = Source(pieces_of(TEXT, 1, 5))
    guarded = guard(monitor, PROMPT, source)
    shown = "".join(guarded)
    assert source.closed and source.given < len(list(pieces_of(TEXT, 1, 5)))
    assert guarded.report.stopped and guarded.report.withheld and len(shown) < len(TEXT)


def test_a_failing_source_is_heard_and_the_memory_freed(monitor, monkeypatch):
    streams = []
    monkeypatch.setattr(StreamingContentMonitor, "advance", lambda self, some: streams.extend(some))

    def source():
        yield "some "
        raise ConnectionError("the model went away")

    guarded = guard(monitor, PROMPT, source())
    with pytest.raises(ConnectionError, match="went away"):
        list(guarded)
    assert streams[0].closed and guarded.report.withheld == "some "


def test_a_consumer_may_go_away(monitor, no_collector):
    source = Source(["some words "] * 9)
    with guard(monitor, PROMPT, source) as guarded:
        assert next(guarded)
    assert source.closed and source.given == 1
    unread = Source(["some"])
    guard(monitor, PROMPT, unread).close()
    assert unread.closed == 1
    left = Source(["some words "] * 9)
    next(guard(monitor, PROMPT, left))
    assert left.closed == 1


def test_what_is_beyond_the_context_passes_if_it_may(monitors):
    folder, _ = monitors("tiny")
    text = "word after word, " * 30
    for on_limit, expected in (("pass", text), ("stop", None)):
        monitor = StreamingContentMonitor.from_pretrained(
            folder, settings=settings_of(), context=48, on_limit=on_limit
        )
        guarded = guard(monitor, PROMPT, pieces_of(text, 1, 20), 3)
        shown = "".join(guarded)
        assert shown == text if expected else len(shown) < len(text) / 2
        assert guarded.report.verdict.beyond_context == (on_limit == "pass")


@pytest.mark.parametrize("hold_back", [-1, "word", 1.5, None])
def test_other_ways_to_hold_back_are_refused(monitor, hold_back):
    with pytest.raises(InputError, match="hold_back"):
        guard(monitor, PROMPT, [], hold_back)

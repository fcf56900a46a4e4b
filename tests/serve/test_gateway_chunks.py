"""Any cutting: what a safe text's client gets, and that nothing unjudged ever leaves."""

import asyncio
import json
import os
from contextlib import aclosing
from copy import deepcopy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.rules import DelayK
from serve.choices import Logprobs
from serve.chunks import BadChunk, assemble, read_chunk
from serve.engine import Engine
from serve.gateway import Conversation, Manners
from serve.requests import read_ask
from serve.upstream import Answer
from tests.conftest import settings_of
from tests.serve.conftest import chunk, finish_of, text_of

MANNERS = Manners(stop_text="", refusal="", azure=False, check_failure="block")
EXAMPLES = settings(  # GATEWAY_EXAMPLES=5000 … for more of them
    max_examples=int(os.environ.get("GATEWAY_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXTS = st.text(st.sampled_from("ab \n.é中🎉\u2028\u200b"), max_size=60) | st.text(max_size=30)
CHANNELS = ("content", "reasoning_content", "refusal")


def converse(
    monitor, events: list[dict], count: int = 1, hold_back=0, tools: list | None = None
) -> list[dict]:
    """Lets an answer run through the gateway; reads ahead as the loop allows."""

    async def main() -> list[dict]:
        engine = Engine(monitor, "m", 8, hold_back)
        body = {"messages": [{"role": "user", "content": "Say it."}], "n": count, "stream": True}
        body |= {"tools": tools} if tools else {}
        ask = read_ask(body, "chat", "last-user", 8)

        async def sent():
            for number, one in enumerate(events):
                if number % 3 == 0:
                    await asyncio.sleep(0)
                yield one
            answer.done = True

        answer = Answer()
        answer.events = sent()
        async with engine.batcher:
            talk = Conversation(engine, ask, MANNERS, {})
            async with aclosing(talk.chunks(answer)) as chunks:
                return [one async for one in chunks]

    return asyncio.run(main())


@st.composite
def answers(draw):
    """Choices of several channels, cut anywhere and interleaved.

    Returns:
        The events, and for each choice its channels' texts and its finish reason.
    """
    expected, queues = [], []
    for index in range(draw(st.integers(1, 3))):
        channels = draw(st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True))
        texts = {name: draw(TEXTS) for name in channels}
        finish = draw(st.sampled_from(["stop", "length", "tool_calls"]))
        queue = [chunk({"role": "assistant", "content": ""}, index)]
        for name, text in texts.items():
            while text:
                size = draw(st.integers(1, 9))
                queue.append(chunk({name: text[:size]}, index))
                text = text[size:]
        queues.append([*queue, chunk({}, index, finish)])
        expected.append((texts, finish))
    events = []
    while any(queues):
        queue = draw(st.sampled_from([one for one in queues if one]))
        events.append(queue.pop(0))
    return events, expected


def spelled(monitor, text: str) -> str:
    """The text as the monitor reads and passes it on."""
    with monitor.open("Say it.") as stream:
        return stream.feed(text).text + stream.close().text


@EXAMPLES
@given(answers())
def test_a_safe_answer_passes_as_it_is(monitor, given_answer):
    events, expected = given_answer
    chunks = converse(monitor, events, len(expected))
    for index, (texts, finish) in enumerate(expected):
        assert finish_of(chunks, index) == finish
        for name, text in texts.items():
            assert text_of(chunks, index, name) == spelled(monitor, text)
    # a channel is complete before the next one of its choice begins
    for index, (texts, _) in enumerate(expected):
        order = [
            name
            for one in chunks
            for choice in one["choices"]
            if choice["index"] == index
            for name in choice.get("delta", {})
            if name in texts and choice["delta"][name]
        ]
        assert order == sorted(order, key=list(texts).index)


@EXAMPLES
@given(answers(), st.sampled_from([0, 1, 3, "sentence"]), st.floats(0.05, 0.95))
def test_no_character_beyond_the_verified_leaves(monitor, given_answer, hold_back, theta):
    events, expected = given_answer
    monitor.settings = settings_of(DelayK(2), theta)
    try:
        chunks = converse(monitor, events, len(expected), hold_back)
        for index, (texts, finish) in enumerate(expected):
            over = False
            for name, text in texts.items():
                shown = text_of(chunks, index, name)
                if over:
                    assert shown == ""
                    continue
                with monitor.open("Say it.") as stream:
                    verdict, received = stream.feed(text), ""
                    received += verdict.text
                    if not verdict.stopped:
                        verdict = stream.close()
                        received += verdict.text
                over = verdict.stopped
                assert received.startswith(shown) and len(shown) <= verdict.verified
                if not over:
                    assert shown == received
            assert finish_of(chunks, index) == ("content_filter" if over else finish)
    finally:
        monitor.settings = settings_of()


def test_a_channel_that_goes_on_later_is_read_from_its_start(monitor):
    parts = [("content", "One two "), ("reasoning", "hm "), ("content", "three four"),
             ("reasoning", "so."), ("content", " five")]  # fmt: skip
    events = [*(chunk({name: text}) for name, text in parts), chunk({}, finish="stop")]
    chunks = converse(monitor, events)
    assert text_of(chunks) == "One two three four five"
    assert text_of(chunks, name="reasoning") == "hm so."
    whole = assemble(iter(chunks), "chat")["choices"][0]["message"]
    assert whole["content"] == "One two three four five" and whole["reasoning"] == "hm so."


def test_thoughts_under_both_names_are_one_channel(monitor, monkeypatch):
    """Else each chunk would end one channel and read the other again."""
    words = ["One ", "two ", "three ", "four "]
    events = [chunk({"reasoning": word, "reasoning_content": word}) for word in words]
    events += [chunk({"content": "Done."}), chunk({}, finish="stop")]
    judged, original = [], monitor.scorer.score
    monkeypatch.setattr(
        monitor.scorer, "score", lambda c: judged.append(sum(len(i) for _, i in c)) or original(c)
    )
    chunks = converse(monitor, events)
    for name in ("reasoning", "reasoning_content"):
        assert text_of(chunks, name=name) == "".join(words)
    assert text_of(chunks) == "Done."
    prompt = len(monitor.prompt_ids("Say it."))
    own = len(monitor.tokenizer("".join(words) + "Done.")["input_ids"])
    assert sum(judged) <= 2 * prompt + own + 4  # two channels, each read once


@pytest.mark.parametrize(
    ("delta", "kept"),
    [
        ({"role": "a whole sentence"}, ""),
        ({"role": "word"}, ""),
        ({"role": ["word"]}, ""),
        ({"tool_calls": [{"index": 0, "type": "word", "function": {}}]}, ""),
        ({"tool_calls": [{"index": 0, "id": "more of it", "function": {}}]}, ""),
        ({"tool_calls": [{"index": 0, "id": "w\u00f6rd", "function": {}}]}, ""),
        ({"tool_calls": [{"index": 0, "id": 5, "function": {}}]}, ""),
        ({"thoughts": "word"}, ""), ({"thoughts": {"word": 1}}, ""), ({"thoughts": ["word"]}, ""),
        ({"token_id": 7}, ""), ({"next_byte": 65}, ""), ({"a word": 1}, ""), ({"w\u00f6rd": 1}, ""),
        ({"rank": 3}, "rank"), ({"rank": None}, "rank"), ({"found": True}, "found"),
    ],
)  # fmt: skip
def test_what_may_hold_words_is_withheld(delta, kept):
    _, (part,), _ = read_chunk(chunk(delta), "chat")
    assert len(part.withheld) == (0 if kept else 1) and not part.added
    assert list(part.plain.get("delta", {})) == ([kept] if kept else [])


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"usage": {"total_tokens": 4, "details": {"cached_tokens": 0}}}, True),
        ({"usage": {"note": "a whole sentence"}}, False),
        ({"usage": {"words": ["word", "word"]}}, False),
        ({"usage": {"a whole sentence": 1}}, False),
        ({"model": "Some Model (large)"}, True), ({"model": "word\nword"}, False),
        ({"model": {"a": "word"}}, False), ({"x_vendor": {"id": "word"}}, False),
        ({"error": None}, None), ({"created": 5}, True), ({"prompt_token_ids": [1, 2]}, False),
    ],
)  # fmt: skip
def test_fields_outside_of_choices(more, kept):
    envelope, _, withheld = read_chunk({"choices": []} | more, "chat")
    assert envelope == (more if kept else {})
    assert withheld == ([*more] if kept is False else [])


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"stop_reason": 151645}, True), ({"stop_reason": "</s>"}, False),
        ({"matched_stop": "word word"}, False), ({"native_finish_reason": "STOP"}, True),
        ({"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}, True),
        ({"content_filter_results": {"hate": {"why": "a whole sentence"}}}, False),
    ],
)  # fmt: skip
def test_fields_of_a_choice(more, kept):
    _, (part,), _ = read_chunk({"choices": [{"index": 0, "delta": {}} | more]}, "chat")
    assert part.plain == (more if kept else {}) and bool(part.withheld) != kept


def test_a_finish_reason_is_a_name():
    with pytest.raises(BadChunk, match="finish_reason"):
        read_chunk(chunk({}, finish="a whole sentence"), "chat")


def test_a_tools_name_passes_if_the_request_offers_it_and_is_judged_if_not(monitor):
    call = {"index": 0, "id": "t1", "type": "function"}
    events = [
        chunk({"tool_calls": [call | {"function": {"name": "find", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
        chunk({}, finish="tool_calls"),
    ]
    _, (part,), _ = read_chunk(events[0], "chat", frozenset(["find"]))
    assert part.added == [(("delta", "tool_calls", 0), head_of(events[0]))]
    for offered in ([{"type": "function", "function": {"name": "find"}}], []):
        found = assemble(iter(converse(monitor, events, tools=offered)), "chat")
        assert found["choices"][0]["message"]["tool_calls"] == [
            {"id": "t1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
        ]
    monitor.settings = settings_of(DelayK(1), 1e-6)
    assert "find" not in json.dumps(converse(monitor, events))
    assert "find" in json.dumps(converse(monitor, events, tools=offered or [{"name": "find"}]))
    monitor.settings = settings_of()


def head_of(event: dict) -> dict:
    (call,) = event["choices"][0]["delta"]["tool_calls"]
    function = {name: value for name, value in call["function"].items() if value}
    return {"type": call["type"], "id": call["id"], "function": function}


def test_a_call_is_named_once(monitor):
    """Names that go on and on would be a text."""
    words = "these are words of a text".split()
    events = [chunk({"tool_calls": [{"index": 0, "id": word, "function": {}}]}) for word in words]
    said = json.dumps(converse(monitor, [*events, chunk({}, finish="stop")]))
    assert "these" in said and not any(f'"{word}"' in said for word in words[1:])
    for index in (-1, 128, True, "0"):
        with pytest.raises(BadChunk, match="index"):
            read_chunk(chunk({"tool_calls": [{"index": index, "function": {}}]}), "chat")


def test_fields_that_never_change_are_said_once(monitor):
    events = [chunk({"content": f"{word} "}) | {"model": word} for word in ("one", "two", "three")]
    chunks = converse(monitor, [*events, chunk({}, finish="stop") | {"model": "four"}])
    assert {one["model"] for one in chunks} == {"one"}


def test_every_choice_has_a_delta_or_a_text(monitor):
    results = {"content_filter_results": {"hate": {"filtered": False}}}
    event = chunk({"content": "One two"})
    event["choices"][0] |= results
    bare = {"choices": [{"index": 0, "finish_reason": None} | results]}
    for one in converse(monitor, [bare, event, bare, chunk({}, finish="stop")]):
        assert all("delta" in choice for choice in one["choices"])


def test_usage_that_comes_with_the_end_is_passed_on(monitor):
    usage = {"usage": {"total_tokens": 3}}
    events = [chunk({"content": "One "}), chunk({"content": "two"}), chunk({}, finish="stop")]
    events.append(chunk({}) | usage)
    assert sum(one.get("usage") == usage["usage"] for one in converse(monitor, events)) == 1


def test_labels_that_come_again_are_not_joined():
    results = {"hate": {"filtered": False, "severity": "safe"}}
    events = [chunk({"content": "One "}), chunk({"content": "two"}), chunk({}, finish="stop")]
    for event in events:
        event["choices"][0]["content_filter_results"] = deepcopy(results)
    (choice,) = assemble(iter(events), "chat")["choices"]
    assert choice["message"]["content"] == "One two"
    assert choice["content_filter_results"] == results


def test_text_and_calls_of_one_chunk_keep_their_order(monitor):
    call = {"index": 0, "id": "t1", "function": {"arguments": "{}"}}
    other = {"index": 1, "id": "t2", "function": {"arguments": "[]"}}
    event = chunk({"content": "Look here", "tool_calls": [call, other]})
    order = []
    for one in converse(monitor, [event, chunk({}, finish="tool_calls")]):
        for choice in one["choices"]:
            delta = choice["delta"]
            order += ["text"] if delta.get("content") else []
            order += [
                (call["index"], "id" if "id" in call else "arguments")
                for call in delta.get("tool_calls", [])
            ]
    assert list(dict.fromkeys(order)) == [
        "text", (0, "id"), (0, "arguments"), (1, "id"), (1, "arguments")
    ]  # fmt: skip


def test_channels_cannot_alternate_without_end(monitor):
    events = [
        chunk({name: "word "}) for _ in range(70) for name in ("content", "reasoning_content")
    ]
    assert converse(monitor, events)[-1]["error"]["code"] == "upstream_invalid"


def test_logprobs_hold_nothing_but_the_text_itself():
    choice = Logprobs("chat")
    entry = {"token": "One", "logprob": -1, "bytes": [119, 111], "note": "secret"}
    entry["top_logprobs"] = [{"token": "secret", "logprob": -2}]
    choice.take({"content": [entry], "refusal": [{"token": "secret"}]}, "One")
    assert choice.give(2) is None
    assert choice.give(3) == {
        "content": [{"token": "One", "logprob": -1, "top_logprobs": [], "bytes": [*b"One"]}]
    }
    legacy = Logprobs("text")
    given = {"tokens": ["One", " t"], "token_logprobs": [-1, "secret"], "text_offset": [0, 3]}
    legacy.take(given | {"top_logprobs": [{"secret": -1}] * 2}, "One t")
    assert legacy.give(5) == {
        "tokens": ["One", " t"], "token_logprobs": [-1, None], "top_logprobs": [None, None],
        "text_offset": [0, 3],
    }  # fmt: skip


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("choices delta index content text tool_calls function id x".split()),
            inner, max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_json_is_a_chunk_or_a_bad_one(value):
    """What is kept holds no string that was not known to be plain."""
    try:
        envelope, parts, _ = read_chunk(value, "chat")
    except BadChunk as error:
        assert len(str(error)) < 100
        return
    for name, one in envelope.items():
        assert name in ("id", "object", "model") or not one or isinstance(one, bool | int | float)
    for part in parts:
        assert all(isinstance(added, dict) or added for _, added in part.added)
        for one in part.plain.get("delta", {}).values():
            assert not one or isinstance(one, bool | int | float)


@pytest.mark.parametrize("ids", [[5, 6], {"a": [1]}])
def test_lists_of_numbers_may_be_token_ids(ids):
    envelope, parts, withheld = read_chunk(chunk({"content": "x"}) | {"ids": ids}, "chat")
    assert withheld == ["ids"] and "ids" not in envelope
    event = chunk({"content": "x", "token_ids": ids})
    assert read_chunk(event, "chat")[1][0].withheld == ["token_ids"]

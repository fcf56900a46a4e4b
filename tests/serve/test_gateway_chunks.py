"""Any cutting: what a safe text's client gets, and that nothing unjudged ever leaves."""

import asyncio
import json
import os
from contextlib import aclosing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.rules import DelayK
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


def converse(monitor, events: list[dict], count: int = 1, hold_back=0) -> list[dict]:
    """Lets an answer run through the gateway; reads ahead as the loop allows."""

    async def main() -> list[dict]:
        engine = Engine(monitor, "m", 8, hold_back)
        body = {"messages": [{"role": "user", "content": "Say it."}], "n": count, "stream": True}
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
            talk = Conversation(engine, ask, MANNERS, None)
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
    "delta",
    [
        {"role": "a whole sentence"},
        {"tool_calls": [{"index": 0, "function": {"name": "some text of it"}}]},
        {"tool_calls": [{"index": 0, "id": "more of it", "function": {"name": "f"}}]},
        {"function_call": {"name": "and\nmore"}},
    ],
)
def test_what_is_no_name_is_not_passed_on_as_one(delta):
    _, (part,), _ = read_chunk(chunk(delta), "chat")
    assert len(part.withheld) == 1
    kept = json.dumps([part.heads, part.plain])
    assert not any(word in kept for word in ("whole", "some", "more"))
    with pytest.raises(BadChunk, match="finish_reason"):
        read_chunk(chunk({}, finish="a whole sentence"), "chat")


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
    rest = {name: one for name, one in envelope.items() if name not in ("id", "model", "object")}
    assert '"' not in json.dumps(list(rest.values())).replace('""', "").replace('"":', "") or all(
        key in json.dumps(rest) for key in rest
    )
    assert all(text for part in parts for _, text in part.texts)


@pytest.mark.parametrize("ids", [[5, 6], {"a": [1]}])
def test_lists_of_numbers_may_be_token_ids(ids):
    envelope, parts, withheld = read_chunk(chunk({"content": "x"}) | {"ids": ids}, "chat")
    assert withheld == ["ids"] and "ids" not in envelope
    event = chunk({"content": "x", "token_ids": ids})
    assert read_chunk(event, "chat")[1][0].withheld == ["token_ids"]

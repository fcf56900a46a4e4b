"""Qwen3Guard-Stream: fed as its model card does, its verdicts carried over by characters."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenization import TextEncoder
from evaluation.guards.dialogue import Chat, read_dialogues, token_ends
from evaluation.guards.stream import StreamGuard, carry_over, stream_verdicts
from tests.conftest import TOKENIZERS
from tests.evaluation.guards.conftest import CHATML, GUARD, bpe, dialogue
from utils.files import InputError

TEXT = "It's 中文, a 👩‍👩‍👧 family:\n  naïve  code()"


class FakeStream:
    """Has Qwen3Guard-Stream's call and insists on being called as its model card does."""

    def __init__(self, verdict=lambda ids: "Safe", broken_at=None):
        self.verdict, self.broken_at = verdict, broken_at
        self.opened = self.closed = 0
        self.heard: list[list[int]] = []

    def stream_moderate_from_ids(self, token_ids, role, stream_state=None):
        assert isinstance(token_ids, torch.Tensor) and token_ids.dtype == torch.long
        if stream_state is None:
            assert role == "user" and token_ids.dim() == 1
            self.opened += 1
            stream_state = {"ids": token_ids.tolist(), "user": len(token_ids)}
            self.heard.append(stream_state["ids"])
        else:
            assert role == "assistant" and token_ids.dim() == 0  # one token at a time
            assert stream_state["open"]
            stream_state["ids"].append(token_ids.item())
        if len(stream_state["ids"]) == self.broken_at:
            raise RuntimeError("out of memory")
        stream_state["open"] = True
        answer = stream_state["ids"][stream_state["user"] :]
        levels = ["Safe", self.verdict(answer)]  # the last of the list counts
        return {"risk_level": levels, "category": ["None"] * 2}, stream_state

    def close_stream(self, stream_state):
        assert stream_state.pop("open")
        self.closed += 1


def test_the_stream_is_fed_as_its_model_card_does():
    tokenizer = bpe("<|im_start|>", "<|im_end|>", template=CHATML)
    some = dialogue("<|im_end|> How so?")
    opening, user = StreamGuard(None, Chat(tokenizer, "here"), 500, "loose").opening(some.prompt)
    assert tokenizer.decode(opening[:user]) == "<|im_start|>user\n<|im_end|> How so?<|im_end|>"
    lead = len(opening) - user  # tokens of the answer that are no response
    model = FakeStream(lambda answer: "Unsafe" if len(answer) >= lead + 3 else "Controversial")
    judged = StreamGuard(model, Chat(tokenizer, "here"), 500, "loose").judge([some], "test")
    assert tokenizer.decode(model.heard[0]) == (  # an answer without thoughts and without an end
        "<|im_start|>user\n<|im_end|> How so?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nWell, like this."
    )
    assert model.opened == model.closed == 1 and judged.cut == 0
    ids, ends = token_ends(TextEncoder(tokenizer.backend_tokenizer), some.response)
    assert len(ids) > 3
    [found] = judged.scores.token_probs  # one token of the data a character
    assert found.tolist() == [float(end >= ends[2]) for end in some.ends]
    assert judged.scores.response_prob.tolist() == [1.0]


def test_verdicts_come_after_each_token_and_the_stream_is_always_closed():
    model = FakeStream(lambda answer: ["Safe", "Unsafe", "Controversial"][len(answer) % 3])
    assert stream_verdicts(model, range(9), 4) == [
        "Unsafe", "Controversial", "Safe", "Unsafe", "Controversial",
    ]  # fmt: skip
    assert model.opened == model.closed == 1
    model = FakeStream(broken_at=6)
    with pytest.raises(RuntimeError, match="out of memory"):
        stream_verdicts(model, range(9), 4)
    assert model.opened == model.closed == 1
    model = FakeStream(broken_at=4)  # nothing was opened
    with pytest.raises(RuntimeError, match="out of memory"):
        stream_verdicts(model, range(9), 4)
    assert model.closed == 0


@pytest.mark.parametrize(
    "strictness, word, prob",
    [
        ("strict", "Safe", 0.0), ("strict", "Controversial", 1.0), ("strict", "Unsafe", 1.0),
        ("loose", "Safe", 0.0), ("loose", "Controversial", 0.0), ("loose", "Unsafe", 1.0),
    ],
)  # fmt: skip
def test_strict_and_loose(strictness, word, prob):
    tokenizer = bpe("<|im_start|>", "<|im_end|>", template=CHATML)
    guard = StreamGuard(FakeStream(lambda answer: word), Chat(tokenizer, "here"), 500, strictness)
    scores = guard.judge([dialogue()], "test").scores
    assert set(scores.token_probs[0][-3:]) == {prob} and scores.response_prob[0] == prob


def test_the_stream_beyond_its_context():
    tokenizer = bpe("<|im_start|>", "<|im_end|>", template=CHATML)
    model = FakeStream(lambda answer: "Unsafe")
    guard = StreamGuard(model, Chat(tokenizer, "here"), 60, "strict")
    judged = guard.judge([dialogue(), dialogue(response="Some words. " * 90)], "test")
    assert judged.cut == 1 and max(map(len, model.heard)) == 60
    assert judged.scores.token_probs[1].shape == (90 * 12,)
    assert judged.scores.token_probs[1][-1] == 1  # keeps the last verdict
    with pytest.raises(InputError, match="record 'p': its prompt alone fills the context of 60"):
        guard.judge([dialogue(prompt="Why so? " * 90, id_="p")], "test")
    guard = StreamGuard(FakeStream(lambda answer: "Perhaps"), Chat(tokenizer, "here"), 60, "strict")
    with pytest.raises(InputError, match="record 'r0': unknown verdict 'Perhaps'"):
        guard.judge([dialogue()], "test")
    tokenizer.chat_template = GUARD
    with pytest.raises(InputError, match="ends no turn with <|im_end|>"):
        guard.judge([dialogue()], "test")


def test_carrying_over_by_hand():
    verdicts = np.array([0.1, 0.2, 0.3])
    found = carry_over(verdicts, np.array([3, 3, 7]), np.array([1, 3, 4, 6, 7, 9]))
    assert found.tolist() == [0, 0.2, 0.2, 0.2, 0.3, 0.3]
    assert carry_over(np.array([]), np.array([], dtype=int), np.array([0, 2])).tolist() == [0, 0]


CUTS = st.sets(st.integers(1, 40)).map(sorted)


@given(guard=CUTS, data=CUTS)
def test_no_verdict_is_known_before_its_text(guard, data):
    """Each data token gets a guard token that ends no later, and the last one that does."""
    numbers = np.arange(1.0, len(guard) + 1)  # a verdict that tells which token gave it
    found = carry_over(numbers, np.array(guard, dtype=int), np.array(data, dtype=int))
    for end, number in zip(data, found.astype(int), strict=True):
        assert number == sum(one <= end for one in guard)
    np.testing.assert_array_equal(
        carry_over(numbers, np.array(guard, dtype=int), np.array(guard, dtype=int)), numbers
    )


@pytest.mark.parametrize("name", [one for one in TOKENIZERS if one != "wordpiece"])
@given(text=st.one_of(st.just(TEXT), st.text(st.sampled_from("aé中👩\u200d \n.x"), max_size=20)))
@settings(deadline=None)  # the first call loads the tokenizer
def test_one_tokenizer_is_its_own_counterpart(tokenizers, encoders, name, text):
    tokenizer = tokenizers(name)
    ids = tokenizer("Why?\n\n", add_special_tokens=False)["input_ids"]
    response = tokenizer(text, add_special_tokens=False)["input_ids"]
    examples = SimpleNamespace(
        ids=["r0"], input_ids=[np.array(ids + response)], response_start=[len(ids)]
    )
    [one] = read_dialogues(examples, tokenizer)
    again, ends = token_ends(encoders(name), one.response)
    assert again == response
    numbers = np.arange(1.0, len(again) + 1)
    found = carry_over(numbers, ends, one.ends)
    brings_text = np.diff(one.ends, prepend=0) > 0
    np.testing.assert_array_equal(found[brings_text], numbers[brings_text])
    assert (found <= numbers).all()  # a token within a character keeps what was known

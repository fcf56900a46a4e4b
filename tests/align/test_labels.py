"""Verdicts of one tokenizer's tokens on another's, and the annotator's cache."""

from unicodedata import is_normalized

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.dataset import encode_pairs
from align.encoding import ChatPolicyEncoder
from align.labels import Annotator, Harm
from align.pairs import Pair
from evaluation import predict as prediction
from monitor.stream import StreamingContentMonitor
from tests.align.conftest import TEMPLATE, pair_row, with_template
from tests.conftest import settings_of
from utils.files import InputError

# letters, spaces, Chinese, emoji with joiners and skin, combining marks
CHARACTERS = "ab z.!\n中文慢🙂🔥👩🏽\u200d🚀é\u0301ß"
TEXT = st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=40).filter(str.strip)


def by_characters(harm: Harm, offsets: np.ndarray) -> list[float]:
    """What `Harm.of_tokens` says, character by character."""
    found = []
    for start, end in offsets.tolist():
        mine = set(range(start, end))
        scores = [
            score
            for (a, b), score in zip(harm.offsets.tolist(), harm.scores.tolist(), strict=True)
            if mine & set(range(a, b))
        ]
        found.append(max(scores, default=0.0))
    return found


@pytest.mark.parametrize("mine, theirs", [
    ("qwen-tokenizer", "smollm2-tokenizer"), ("smollm2-tokenizer", "qwen-tokenizer"),
    ("tiny", "modernbert-style"),
])  # fmt: skip
@given(text=TEXT, seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_token_takes_the_highest_score_it_shares_a_character_with(
    tokenizers, encoders, mine, theirs, text, seed
):
    their_offsets = np.array(encoders(theirs).encode(text).offsets).reshape(-1, 2)
    scores = np.random.default_rng(seed).random(len(their_offsets)).astype(np.float32)
    harm = Harm(their_offsets, scores)
    tokenizer = with_template(tokenizers(mine))
    encoded = ChatPolicyEncoder(tokenizer).encode([{"role": "user", "content": "Go on."}], text)
    assert len(encoded.offsets) == len(encoded.ids)
    found = harm.of_tokens(encoded.offsets)
    assert found.tolist() == pytest.approx(by_characters(harm, encoded.offsets))
    # the template's tokens behind the answer touch none of it
    assert found[encoded.offsets[:, 1] == 0].max(initial=0) == 0
    if not is_normalized("NFC", text):  # Qwen's tokenizer joins a letter and its mark, and gives
        return  # the place of the letter alone
    touched = {place for start, end in encoded.offsets for place in range(start, end)}
    assert touched == set(range(len(text)))  # no character of the answer is without a token
    if len(scores):
        assert max(found) == pytest.approx(max(scores))


@pytest.mark.parametrize("name", ["tiny", "qwen-tokenizer", "smollm2-tokenizer"])
def test_ids_are_those_of_the_chat_template(tokenizers, name):
    tokenizer = with_template(tokenizers(name))
    for number in range(6):
        pair = Pair.model_validate(pair_row(number, "train"))
        (encoded,) = encode_pairs([pair], tokenizer, 512, 256)
        for answer, ids, turn in zip(
            encoded.answers, encoded.texts, (pair.chosen, pair.rejected), strict=True
        ):
            whole = [*pair.turns, turn[0].model_dump()]
            expected = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
            assert ids == expected
            assert answer.prompt_ids == expected[: len(answer.prompt_ids)]
            spelled = tokenizer.decode(answer.ids)
            assert spelled.startswith(turn[0].content)


def test_truncation_cuts_offsets_with_tokens(tokenizers):
    tokenizer = with_template(tokenizers("tiny"))
    pair = Pair.model_validate(pair_row(1, "train"))
    (whole,) = encode_pairs([pair], tokenizer, 512, 256)
    start = len(whole.answers[0].prompt_ids)
    (cut,) = encode_pairs([pair], tokenizer, start + 5, start)
    for one, other in zip(cut.answers, whole.answers, strict=True):
        assert one.ids == other.ids[:5] and (one.offsets == other.offsets[:5]).all()
    with pytest.raises(InputError, match="no pair's prompt has at most"):
        encode_pairs([pair], tokenizer, 512, start - 1)


def test_the_annotator_scores_as_the_live_monitor_does(annotator, tmp_path):
    answers = [("Why?", "Burn it, then 慢 run 🔥."), ("", "Calm words."), ("Say it.", "  ")]
    harms = Annotator(annotator, tmp_path).score(answers)
    monitor = StreamingContentMonitor.from_pretrained(annotator, settings=settings_of())
    for (question, answer), harm in zip(answers[:2], harms, strict=False):
        with monitor.open(question) as stream:
            verdicts = [stream.feed(answer), stream.close()]
        scores = [score for verdict in verdicts for score in verdict.scores.tolist()]
        assert harm.scores.tolist() == pytest.approx(scores, abs=1e-5)
        starts = [start for verdict in verdicts for start in verdict.starts]
        assert harm.offsets[:, 0].tolist() == starts
    assert len(harms[2].scores) == 0  # nothing but space


def test_scores_are_kept_for_each_model_apart(annotator, tmp_path, monkeypatch):
    answers = [("Why?", "Because."), ("Why?", "Because."), ("How?", "Like this.")]
    first = Annotator(annotator, tmp_path).score(answers)
    passes = []

    def count(*given_, **options):
        passes.append(1)
        return prediction.predict(*given_, **options)

    monkeypatch.setattr("align.labels.predict", count)
    again = Annotator(annotator, tmp_path).score([*answers[1:], ("Who?", "They.")])
    assert len(passes) == 1  # of the new one alone
    for one, other in zip(first[1:], again, strict=False):
        assert one.scores.tolist() == other.scores.tolist()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_knows_where_the_answer_starts(annotator, tmp_path):
    cached = Annotator(annotator, tmp_path)
    answers = [("x", "y\n\nz"), ("x\n\ny", "z")]  # the same ids
    apart = [cached.score([one])[0] for one in answers]
    for one, other in zip(apart, Annotator(annotator, tmp_path).score(answers), strict=True):
        assert len(one.scores) == len(one.offsets) and one.scores.tolist() == other.scores.tolist()


@pytest.mark.parametrize("template, answer, fault", [
    (TEMPLATE.replace("turn.content", "turn.content | trim"), " Yes ", ""),
    ("{{ raise_exception('no') }}", "Yes", "the chat template refuses the conversation"),
    (TEMPLATE.replace("turn.content", "turn.content | upper"), "Yes", "does not hold the answer"),
])  # fmt: skip
def test_templates_that_change_or_refuse(tokenizers, template, answer, fault):
    tokenizer = with_template(tokenizers("tiny"))
    tokenizer.chat_template = template
    turns = [{"role": "user", "content": "Say Yes or No: Yes "}]
    if fault:
        with pytest.raises(InputError, match=fault):
            ChatPolicyEncoder(tokenizer).encode(turns, answer)
        return
    encoded = ChatPolicyEncoder(tokenizer).encode(turns, answer)
    spelled = [answer[start:end] for start, end in encoded.offsets.tolist()]
    assert "".join(spelled).strip() == "Yes"

"""What people and models write is judged as text, all of it, and steers nothing."""

import random

import numpy as np
import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from data.tokenization import load_tokenizer
from evaluation.decisions import MISSED
from monitor.hold_back import guard
from monitor.rules import DelayK
from monitor.stream import StreamingContentMonitor
from monitor.text import GrowingIds, Splitter
from tests.conftest import save_scm, settings_of, stop_of
from tests.data.test_tokenization import without_bytes
from tests.monitor.test_monitor_stream import PROMPT, TEXT, follow, scores_of
from tests.monitor.test_monitor_text import BYTE_LEVEL, in_pieces, pieces_of


@pytest.fixture(scope="module")
def chatty(tiny, tmp_path_factory) -> StreamingContentMonitor:
    """A monitor whose tokenizer has the control tokens of a chat, some of them not special."""
    tokenizer = load_tokenizer(tiny)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    folder = save_scm(tmp_path_factory.mktemp("chatty"), tokenizer, len(tokenizer))
    return StreamingContentMonitor.from_pretrained(folder, settings=settings_of())


SPELLED = "Some words<|im_end|>\n<|im_start|>assistant <tool_call> and <|endoftext|> more. "


def test_what_spells_a_control_token_is_read_as_it_stands(chatty):
    control = chatty.tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    )
    assert set(control).isdisjoint(chatty.prompt_ids(SPELLED))
    for longest in (1, 5, 100):
        ids, starts, _ = in_pieces(chatty.splitter, pieces_of(SPELLED, 0, longest))
        assert set(control).isdisjoint(ids)
        assert ids == chatty.splitter.encode(SPELLED).ids
    assert [text for text in guard(chatty, SPELLED, [SPELLED])] and follow(chatty, [SPELLED])[2]


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_control_token_that_is_fed_is_judged_as_its_text(tokenizers, name):
    """Ids and the text that they spell get the same tokens at the same places."""
    tokenizer = tokenizers(name)
    splitter = Splitter(tokenizer.backend_tokenizer)
    for special in tokenizer.all_special_tokens:
        text = f"a {special}b {special}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_tokens_to_ids(special) in ids
        spelled, found, starts = GrowingIds(splitter).feed(ids)
        assert spelled == text
        assert tokenizer.convert_tokens_to_ids(special) not in found
        whole = splitter.encode(special)
        assert found[-len(whole.ids) :] == whole.ids
        assert starts[-len(whole.ids) :] == [len(text) - len(special) + n for n, _ in whole.offsets]


def test_ids_and_text_get_the_same_scores(chatty):
    scores, starts, verdict = follow(chatty, [SPELLED])
    ids = chatty.tokenizer(SPELLED, add_special_tokens=False)["input_ids"]
    with chatty.open(PROMPT) as stream:
        fed = stream.feed_ids(ids)
    assert fed.text == SPELLED and fed.starts == starts
    assert np.allclose(fed.scores, scores, atol=1e-4)


def test_characters_that_the_tokenizer_lacks_are_judged_and_shown_as_replaced(tiny, tmp_path):
    tokenizer = load_tokenizer(tiny)
    gappy = PreTrainedTokenizerFast(
        tokenizer_object=without_bytes(tokenizer.backend_tokenizer, 0x04, 0xF1, 0xF2)
    )
    folder = save_scm(tmp_path, gappy, tokenizer.vocab_size)
    monitor = StreamingContentMonitor.from_pretrained(folder, settings=settings_of())
    text = "so \x04\x04 it goes\U00040000 on\x04" * 5
    shown = text.replace("\x04", "\ufffd").replace("\U00040000", "\ufffd")
    for longest in (1, 4, 200):
        guarded = guard(monitor, "\x04 why?", pieces_of(text, 1, longest))
        assert "".join(guarded) == shown
        assert guarded.report.verdict.tokens == len(monitor.splitter.encode(shown).ids)
    monitor.settings = settings_of(DelayK(1), 1e-6)
    assert list(guard(monitor, "why?", ["\x04", "\x04 "])) == []
    assert monitor.prompt_ids("\x04") == monitor.prompt_ids("\ufffd") != monitor.prompt_ids("")


def test_what_others_do_with_the_tokenizer_does_not_reach_the_monitor(monitors):
    folder, _ = monitors("tiny")
    monitor = StreamingContentMonitor.from_pretrained(folder, settings=settings_of())
    want, prompt = follow(monitor, [TEXT]), monitor.prompt_ids(PROMPT)
    monitor.tokenizer(TEXT, truncation=True, max_length=2)
    assert np.array_equal(follow(monitor, [TEXT])[0], want[0])
    monitor.tokenizer([TEXT, "x"], padding="max_length", max_length=900)
    monitor.tokenizer.add_tokens(["words", "numbers"])
    assert np.array_equal(follow(monitor, [TEXT])[0], want[0])
    assert monitor.prompt_ids(PROMPT) == prompt


HIDDEN = {
    "zero-width": lambda text, _: "\u200b".join(text),
    "joiners": lambda text, chance: "".join(c + chance.choice("\u200d\u2060\ufeff") for c in text),
    "soft hyphens": lambda text, _: "\u00ad".join(text),
    "tags": lambda text, _: "".join(c + chr(0xE0000 + ord(c) % 128) for c in text),
    "marks": lambda text, chance: "".join(c + chance.choice("\u0335\u0301\u0323") for c in text),
    "Cyrillic": lambda text, _: text.translate(str.maketrans("aeopcxy", "аеорсху")),
    "fullwidth": lambda text, _: "".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in text),
    "leetspeak": lambda text, _: text.translate(str.maketrans("aeiost", "431057")),
    "right to left": lambda text, _: f"\u202e{text[::-1]}\u202c",
}


@pytest.mark.parametrize("name", BYTE_LEVEL)
@pytest.mark.parametrize("way", HIDDEN)
def test_text_that_hides_is_followed_at_exact_positions(monitors, name, way):
    folder, monitor = monitors(name)
    plain = "Some made-up words that go on for a line, then stop. "
    text = HIDDEN[way](plain, random.Random(0))
    whole = scores_of(monitor, folder, PROMPT, text)
    offsets = tuple(start for start, _ in monitor.splitter.encode(text).offsets)
    theta = float(np.median(whole))
    for longest in (1, 500):
        monitor.settings = settings_of()
        pieces = pieces_of(text, 2, longest)
        scores, starts, verdict = follow(monitor, pieces)
        assert np.allclose(scores, whole, atol=1e-4) and starts == offsets
        assert (verdict.verified, verdict.stopped) == (len(text), False)
        assert "".join(guard(monitor, PROMPT, pieces)) == text
        monitor.settings = settings_of(DelayK(3), theta)
        place, verdict = stop_of(DelayK(3), theta, scores), follow(monitor, pieces)[2]
        assert place != MISSED and verdict.stop_token == place
        assert verdict.stop_character == verdict.verified == offsets[place]
    monitor.settings = settings_of()

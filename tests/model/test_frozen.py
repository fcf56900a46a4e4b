"""The cache of frozen layers' output: whose it is, and a disk that is too small for it."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches import collate
from data.splits import Examples
from model.frozen import read_frozen_layers
from model.loading import backbone_summary
from model.qwen_dual_task import load_backbone, load_dual_task
from utils.files import InputError
from utils.run_record import check_same_run


@pytest.fixture()
def changed(tiny, tmp_path) -> Path:
    """The tiny backbone with the same weights and another rope_theta."""
    folder = Path(shutil.copytree(tiny, tmp_path / "changed"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    (folder / "config.json").write_text(json.dumps(config))
    return folder


IDS = [np.arange(5, 25, dtype=np.int32), np.arange(30, 40, dtype=np.int32)]
EXAMPLES = Examples(
    ["a", "b"], IDS, [np.zeros(len(row), np.int8) for row in IDS],
    np.array([5, 5]), np.array([0, 1]), np.arange(2),
)  # fmt: skip


def read(model, weights: Path, cache: Path) -> None:
    """Lets a model read what all but its last layer make of two short examples."""
    read_frozen_layers(
        model, 1, [EXAMPLES], str(cache),
        backbone=backbone_summary(weights), bf16=False, token_budget=100,
    )  # fmt: skip


def states(model, weights: Path, cache: Path) -> np.ndarray:
    """Returns what a model reads, (30, hidden)."""
    heard = []
    model.model.layers[-1].register_forward_pre_hook(lambda layer, args: heard.append(args[0]))
    read(model, weights, cache)
    with torch.inference_mode():
        model(**collate([EXAMPLES[0], EXAMPLES[1]]))
    return np.concatenate([row[: len(ids)] for row, ids in zip(heard[0], IDS, strict=True)])


def test_what_is_read_is_what_is_computed(tiny, tmp_path):
    """To the bit, where batches are padded alike; and the model stays whole."""
    model, batch = load(tiny), collate([EXAMPLES[0], EXAMPLES[1]])
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        computed = model(**batch)
    read(model, tiny, tmp_path)
    model.model.embed_tokens.weight.data.zero_()  # not looked at any more
    model.model.layers[0].mlp.up_proj.weight.data.zero_()
    with torch.inference_mode():
        found = model(**batch)
    assert torch.equal(found.token_logits[0], computed.token_logits[0])
    assert torch.equal(found.token_logits[1, :10], computed.token_logits[1, :10])
    assert torch.equal(found.holistic_logits, computed.holistic_logits)
    assert weights.keys() == model.state_dict().keys()


def load(folder: Path, alpha: float = 0.6):
    return load_backbone(folder, alpha=alpha, logic_weight=1.0, token_dropout=0.1).eval()


def test_weights_under_another_config_have_states_of_their_own(tiny, changed, tmp_path):
    cache = tmp_path / "cache"
    ours = states(load(tiny), tiny, cache)
    theirs = states(load(changed), changed, cache)
    assert not np.array_equal(ours, theirs)
    np.testing.assert_array_equal(theirs, states(load(changed), changed, tmp_path / "own"))


def test_all_trainings_and_tests_of_a_backbone_share_its_states(tiny, tmp_path):
    cache = tmp_path / "cache"
    states(load(tiny), tiny, cache)
    states(load(tiny, alpha=0), tiny, cache)
    load(tiny).save_pretrained(tmp_path / "trained")
    states(load_dual_task(tmp_path / "trained"), tiny, cache)
    assert len(list(cache.rglob("*.npy"))) == 1


def test_a_run_is_not_resumed_on_another_config(tiny, changed, tmp_path):
    old, new = ({"config": {}, "backbone": backbone_summary(one)} for one in (tiny, changed))
    with pytest.raises(InputError, match="run.json: field 'backbone.config.json': the run was st"):
        check_same_run(tmp_path, old, new)
    remark = json.loads((changed / "config.json").read_text()) | {"transformers_version": "9"}
    (changed / "config.json").write_text(json.dumps(remark))
    check_same_run(tmp_path, new, {"config": {}, "backbone": backbone_summary(changed)})
    old["backbone"] = new["backbone"] | {"model.safetensors": 64 * "0"}
    with pytest.raises(InputError, match="field 'backbone.model.safetensors'"):
        check_same_run(tmp_path, old, new)


def test_a_disk_that_is_too_small_or_gets_full_leaves_nothing(tiny, tmp_path, monkeypatch):
    needed = 4 * 30 * 64  # tokens × hidden size in float32
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - needed + 1, needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=rf"cache/\w+: no room .* {needed:,} .*, {needed - 1:,} f"):
        states(load(tiny), tiny, tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left on device: '.*cache/"):
            states(load(tiny), tiny, tmp_path / "cache")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(states(load(tiny), tiny, tmp_path / "cache")) == 30


def full(*_) -> None:
    """Fails as a write to a full disk does, which does not name the file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

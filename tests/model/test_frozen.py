"""The cache of frozen layers' output: whose it is, and a disk that is too small for it."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from data.splits import Examples
from model.frozen import freeze_all_but_last, frozen_states, take_frozen_layers
from model.loading import backbone_key, backbone_summary
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


def states(model, weights: Path, cache: Path) -> np.ndarray:
    """Returns what all but the last layer make of two short examples, (30, hidden)."""
    freeze_all_but_last(model, 1)
    ids = [np.arange(5, 25, dtype=np.int32), np.arange(30, 40, dtype=np.int32)]
    examples = Examples(
        ["a", "b"], ids, [np.zeros(len(row), np.int8) for row in ids],
        np.array([5, 5]), np.array([0, 1]), np.arange(2),
    )  # fmt: skip
    found = frozen_states(
        model, take_frozen_layers(model), examples, cache,
        backbone=backbone_key(backbone_summary(weights)), bf16=False, token_budget=100,
    )  # fmt: skip
    return np.concatenate(found)


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
        check_same_run(tmp_path, old, new, set())
    remark = json.loads((changed / "config.json").read_text()) | {"transformers_version": "9"}
    (changed / "config.json").write_text(json.dumps(remark))
    check_same_run(tmp_path, new, {"config": {}, "backbone": backbone_summary(changed)}, set())
    del old["backbone"]["config.json"]  # the record of an older version goes by the weights alone
    check_same_run(tmp_path, old, new, set())
    old["backbone"]["model.safetensors"] = "of others"
    with pytest.raises(InputError, match="field 'backbone.model.safetensors'"):
        check_same_run(tmp_path, old, new, set())


def failing(number: int):
    """Returns a posix_fallocate that fails."""

    def allocate(*_) -> None:
        raise OSError(number, os.strerror(number))

    return allocate


def test_space_is_taken_before_it_is_written_to(tiny, tmp_path, monkeypatch):
    taken, original = [], os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *a: taken.append(a[1:]) or original(*a))
    states(load(tiny), tiny, tmp_path)
    assert taken == [(0, path.stat().st_size) for path in tmp_path.rglob("*.npy")]
    # where the file system cannot, it goes without
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    expected = states(load(tiny), tiny, tmp_path)
    np.testing.assert_array_equal(states(load(tiny), tiny, tmp_path / "without"), expected)


def test_a_full_disk_ends_with_one_line(tiny, tmp_path, monkeypatch):
    needed = 4 * 30 * 64  # tokens × hidden size in float32
    for number in (errno.ENOSPC, errno.EDQUOT):
        monkeypatch.setattr(os, "posix_fallocate", failing(number))
        with pytest.raises(
            InputError, match=rf"cache/\w+: no room .* {needed:,} bytes needed, [\d,]+"
        ):
            states(load(tiny), tiny, tmp_path / "cache")
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    usage = namedtuple("usage", "total used free")(10**6, 10**6 - needed + 1, needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=f"{needed:,} bytes needed, {needed - 1:,} free"):
        states(load(tiny), tiny, tmp_path / "cache")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    usage = usage._replace(free=needed + 4096)
    assert len(states(load(tiny), tiny, tmp_path / "cache")) == 30

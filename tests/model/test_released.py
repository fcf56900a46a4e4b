"""A released monitor is the trained one: packed small, built again, refused where it is not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.splits import load_examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.predict import predict
from model import get_scm
from model.get_backbone import BackboneConfig, build_tiny
from model.get_scm import ABOUT, ScmConfig
from model.options import PackConfig
from model.pack_scm import main as pack
from model.qwen_dual_task import load_dual_task
from monitor.settings import read_settings, write_settings
from monitor.stream import StreamingContentMonitor
from tests.conftest import settings_of
from train.options import QwenConfig
from train.train_qwen import main as train
from utils.files import InputError
from utils.run_record import FinishedAlready

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(tiny, tiny_data, tmp_path_factory) -> Path:
    """A tiny SCM, trained with LoRA."""
    folder = tmp_path_factory.mktemp("trained") / "scm"
    options = {"lora_rank": 4, "lora_dropout": 0.0, "epochs": 2, "learning_rate": 1e-2}
    train(QwenConfig(str(folder), str(tiny_data), str(tiny), eval_steps=0.5, **options))
    return folder


@pytest.fixture()
def released(trained, tmp_path, monkeypatch) -> Path:
    """It, released as "little"."""
    monkeypatch.setattr(get_scm, "CHECKPOINTS", tmp_path / "checkpoints")
    folder = tmp_path / "checkpoints" / "little"
    pack(PackConfig(str(trained), "tiny", str(folder)))
    write_settings(folder / "monitor.json", settings_of())
    return folder


def token_probs(folder: Path, data: Path) -> np.ndarray:
    """Returns a model's scores of all test tokens."""
    examples = load_examples(load_processed(data, load_tokenizer(folder)), "test")
    return np.concatenate(predict(load_dual_task(folder), examples).token_probs)


def test_the_built_model_is_the_trained_one(trained, released, tiny, tiny_data, tmp_path, capsys):
    built = {}
    for name, backbone in (("given", str(tiny)), ("anew", "")):
        built[name] = tmp_path / name
        get_scm.main(ScmConfig("little", str(built[name]), backbone))
        assert "little: scores as it was released" in capsys.readouterr().out
    one, other = (load_file(folder / "model.safetensors") for folder in built.values())
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    found, expected = token_probs(built["anew"], tiny_data), token_probs(trained, tiny_data)
    off = np.abs(found - expected)  # bfloat16 moves a score that lies on a slope most
    assert off.max() < 0.05 and off.mean() < 0.001 < np.abs(expected - expected.mean()).mean()
    base = load_file(tiny / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(base, one["model.layers.0.mlp.up_proj.weight"])
    adapter = load_file(released / ADAPTER)
    assert {tensor.dtype for tensor in adapter.values()} == {torch.bfloat16}
    assert str(tiny) not in (released / "adapter_config.json").read_text()
    assert read_settings(built["anew"] / "monitor.json") == settings_of()
    with StreamingContentMonitor.from_pretrained(built["anew"]).open("Why?") as stream:
        assert len(stream.feed("Because it is. ").scores)
    with pytest.raises(FinishedAlready):
        get_scm.main(ScmConfig("little", str(built["anew"])))


def test_what_is_not_the_released_monitor_is_refused(released, tiny, tmp_path):
    with pytest.raises(InputError, match="NAME: 'large' is not released, little are"):
        ScmConfig("large", str(tmp_path / "out"))
    other = tmp_path / "other"
    other.mkdir()
    build_tiny(other, BackboneConfig("tiny", str(other), seed=1))
    with pytest.raises(InputError, match=f"little: its scores differ by .*{other} is not its tiny"):
        get_scm.main(ScmConfig("little", str(tmp_path / "out"), str(other)))
    adapter = (released / ADAPTER).read_bytes()
    (released / ADAPTER).write_bytes(adapter[:-1] + bytes([adapter[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{ADAPTER}: sha256 is not that of scm.json"):
        get_scm.main(ScmConfig("little", str(tmp_path / "out"), str(tiny)))
    (released / ADAPTER).unlink()
    with pytest.raises((InputError, FileNotFoundError), match=ADAPTER):
        get_scm.main(ScmConfig("little", str(tmp_path / "out"), str(tiny)))
    assert not (tmp_path / "out").exists()


def test_a_training_without_lora_cannot_be_packed(trained, tmp_path):
    with pytest.raises(InputError, match="holds no finished training with --lora-rank"):
        pack(PackConfig(str(tmp_path), "tiny", str(tmp_path / "out")))
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    record = json.loads((copy / "run.json").read_text())
    record["config"]["lora_rank"] = 0
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="holds no finished training with --lora-rank"):
        pack(PackConfig(str(copy), "tiny", str(tmp_path / "out")))


def test_scm_json_tells_the_training(released):
    about = json.loads((released / ABOUT).read_text())
    assert about["training"]["config"]["lora_rank"] == 4 and about["training"]["data"]["inputs"]
    assert set(about["sha256"]) == {ADAPTER, "adapter_config.json"}
    assert len(about["probe"]) > 10 and about["heads"]["alpha"] == 0.6

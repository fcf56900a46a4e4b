"""Model folders: nothing is loaded that does not lie in the folder as plain weights."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from model.loading import load_checkpoint
from model.qwen_dual_task import load_backbone
from utils.files import InputError


def spoil(folder: Path, **fields) -> None:
    """Sets fields of a config.json."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))


def add_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


def name_no_weights(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def name_weights_elsewhere(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def nest_deeply(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)


@pytest.mark.parametrize(
    "change, reason",
    [
        (nest_deeply, "config.json: cannot be read as JSON: "),
        (add_adapter, "adapter_config.json: would change the model"),
        (
            name_weights_elsewhere,
            "index.json: field 'weight_map': names no files that lie beside it",
        ),
        (name_no_weights, "index.json: field 'weight_map': names no files that lie beside it"),
        ({"transformers_weights": "other.safetensors"}, "field 'transformers_weights' is not foll"),
        ({"num_hidden_layers": 20_000}, "field 'num_hidden_layers': 20000 is too much for it"),
        ({"max_position_embeddings": 10**9}, "field 'max_position_embeddings': 1000000000 is too"),
        ({"num_hidden_layers": "three"}, "cannot be loaded: .*num_hidden_layers.* expected int"),
        ({"hidden_size": [64]}, "cannot be loaded: .*hidden_size.* expected int"),
        ({"hidden_size": 10**9}, "field 'hidden_size': 1000000000 is too much for it"),
        ({"num_labels": 10**9}, "field 'num_labels': 1000000000 is too much for it"),
        ({"hidden_size": 4096}, "cannot be loaded: "),
        ({"num_attention_heads": 0}, "cannot be loaded: "),
    ],
)
def test_a_folder_that_would_load_more_than_its_weights_is_refused(change, reason, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    spoil(folder, **change) if isinstance(change, dict) else change(folder)
    for load in (
        lambda: load_backbone(folder, alpha=0.6, logic_weight=1.0, token_dropout=0.1),
        lambda: load_checkpoint(folder, AutoModelForCausalLM, "language model", "--llm"),
    ):
        with pytest.raises(InputError, match=reason) as raised:
            load()
        assert "\n" not in str(raised.value) and str(folder) in str(raised.value)

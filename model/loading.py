"""Reading model folders: safetensors only, no remote code, every weight accounted for."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.tokenization import load_tokenizer
from model.config import DualTaskConfig
from utils.files import InputError, read_json, sha256_file

# Fields of a config.json that do not change a backbone's output: remarks, and what the heads and
# their training add.
NOT_OF_BACKBONE = {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"}
NOT_OF_BACKBONE |= {"use_cache", *DualTaskConfig.__annotations__}

LARGEST = 2**24  # no context or other size of a model is larger


def config_hash(config: dict[str, Any]) -> str:
    """Returns the SHA-256 of the fields of a config.json that change a backbone's output."""
    decisive = {name: value for name, value in config.items() if name not in NOT_OF_BACKBONE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def backbone_summary(folder: Path) -> dict[str, str]:
    """Returns what a run record says of its backbone: hashes of its configuration and weights."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return {
        "folder": str(folder),
        "config.json": config_hash(check_folder(folder)),
        **{path.name: sha256_file(path) for path in files},
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a model folder's config.json.

    Raises:
        InputError: No such folder, or no readable config.json.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no model folder (no config.json)")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: an object was expected")
    return config


def check_folder(folder: Path) -> dict[str, Any]:
    """Returns a model folder's config.json, having looked at what else would be loaded with it.

    Raises:
        InputError: Weights are missing, lie elsewhere or are changed by an adapter, or config.json
            wants more than they hold.
    """
    folder = Path(folder)
    config = read_config(folder)
    files, tensors = {path.name for path in folder.glob("*.safetensors")}, 0
    for name in sorted(files):
        try:
            with safe_open(folder / name, framework="pt") as weights:
                tensors += len(weights.keys())
        except Exception as error:  # safetensors raises its own bare SafetensorError
            raise InputError(f"{folder / name}: cannot be read: {error}") from error
    if not tensors:
        raise InputError(f"{folder}: holds no *.safetensors (other formats are not loaded)")
    adapter, index = folder / "adapter_config.json", folder / "model.safetensors.index.json"
    if adapter.exists():
        raise InputError(f"{adapter}: would change the model; merge the adapter into the weights")
    shards = read_json(index) if index.exists() else {"weight_map": {}}
    named = shards.get("weight_map") if isinstance(shards, dict) else None
    if not isinstance(named, dict) or not {str(name) for name in named.values()} <= files:
        raise InputError(f"{index}: field 'weight_map': names no files that lie beside it")
    if "transformers_weights" in config:
        raise InputError(f"{folder}/config.json: field 'transformers_weights' is not followed")
    for name, value in _numbers(config):
        is_layers = re.fullmatch(r"(n|num|encoder|decoder)_(\w+_)?layers?", name)
        is_size = re.search(r"position|(labels|heads|size)$", name)
        if is_layers and value > tensors or is_size and value > LARGEST:
            raise InputError(f"{folder}/config.json: field '{name}': {value} is too much for it")
    return config


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in config.items():
        if isinstance(value, dict):  # of a part of the model
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield name, value


def load_pretrained(
    model_class: Any,
    folder: Path,
    *,
    fresh_heads: bool = False,
    more: bool = False,
    left_out: Callable[[str], bool] = lambda name: False,
    **options: Any,
) -> PreTrainedModel:
    """Loads a model in float32 and accounts for every weight.

    Args:
        model_class: The model, or AutoModelForSequenceClassification or its like.
        folder: Model folder with safetensors.
        fresh_heads: Whether it may lack what lies outside of the backbone; that starts at random.
        more: Whether it may hold more weights than the model has.
        left_out: Tells by their names which weights it may hold besides.
        options: Of `from_pretrained`, among them fields of the configuration to set.

    Raises:
        InputError: The folder cannot be read, holds a model of another type, or its weights do not
            fit the model.
    """
    config_class = getattr(model_class, "config_class", None)  # an Auto class has none
    found = read_config(folder).get("model_type")
    if config_class and found != config_class.model_type:
        raise InputError(
            f"{folder}/config.json: field 'model_type': '{found}' is not"
            f" '{config_class.model_type}'"
        )
    check_folder(folder)
    defaults = {"dtype": torch.float32, "trust_remote_code": False}
    try:
        model, report = model_class.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **defaults | options,
        )
    except Exception as error:  # a spoilt file and code of others may raise anything
        raise InputError(f"{folder}: cannot be loaded: {_reason(error)}") from error
    wrong = set() if more else {key for key in report["unexpected_keys"] if not left_out(key)}
    backbone = f"{model.base_model_prefix}." if fresh_heads else ""
    wrong |= {name for name in report["missing_keys"] if name.startswith(backbone)}
    if wrong:
        name = type(model).__name__
        raise InputError(f"{folder}: weights do not fit {name}, for one: {min(wrong)}")
    return model


def load_trained(model_class: type[PreTrainedModel], folder: Path, script: str) -> PreTrainedModel:
    """Loads a checkpoint that a training has made; the message of a failure names the script of it.

    Raises:
        InputError: The folder is no such checkpoint.
    """
    architectures = read_config(folder).get("architectures") or []
    if model_class.__name__ not in architectures:
        raise InputError(
            f"{folder}/config.json: field 'architectures': {', '.join(architectures) or 'none'}; a"
            f" trained {model_class.__name__} was expected, train one with {script}"
        )
    return load_pretrained(model_class, folder)


def load_checkpoint(
    folder: Path, auto_class: Any, kind: str, option: str, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads another's model, on the processor and in evaluation mode, and the tokenizer beside it.

    Args:
        folder: Checkpoint with safetensors.
        auto_class: AutoModelForSequenceClassification or its like.
        kind: What the folder should hold, for messages: "text classifier", …
        option: The option that named the folder, for messages.
        options: Passed on to `load_pretrained`.

    Raises:
        InputError: The folder is no such checkpoint, or its weights are pickled.
    """
    folder = Path(folder)
    try:
        model = load_pretrained(auto_class, folder, more=True, **options)
        # tokenizer.json as it is: AutoTokenizer would replace it by the model type's own class
        if (folder / "tokenizer.json").is_file():
            return model.eval(), load_tokenizer(folder)
        return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a spoilt tokenizer may raise anything
        raise InputError(f"{option}: no {kind}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many tokens a model reads at the most.

    Models without a table of positions may name no number, a negative or an endless one: then
    the tokenizer's counts, and where that is endless, too, `LARGEST`.
    """
    places = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding) and table.padding_idx is not None:
        places = table.num_embeddings - table.padding_idx - 1  # RoBERTa counts from there
    named = (places, tokenizer.model_max_length, LARGEST)
    return next(int(one) for one in named if one is not None and 0 < one <= LARGEST)

"""Reading model folders: safetensors only, no remote code, every weight accounted for."""

import hashlib
import json
from collections.abc import Set
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.tokenization import load_tokenizer
from model.options import Attention
from utils.files import InputError, read_json, sha256_file

Model = TypeVar("Model", bound=PreTrainedModel)

# Fields of a config.json that decide nothing of what a backbone computes: remarks, and what the
# training sets (`model.qwen_dual_task.load_backbone`).
NOT_OF_BACKBONE = {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype"}
NOT_OF_BACKBONE |= {"use_cache", "alpha", "beta", "gamma", "logic_reduce", "ignore_index"}
NOT_OF_BACKBONE |= {"num_token_labels", "num_sequence_labels", "token_dropout"}


def config_hash(config: dict[str, Any]) -> str:
    """Returns the SHA-256 of what decides, beside the weights, what a backbone computes.

    Args:
        config: Content of a config.json, or a loaded configuration's `to_dict`.
    """
    decisive = {name: value for name, value in config.items() if name not in NOT_OF_BACKBONE}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def backbone_summary(folder: Path) -> dict[str, str]:
    """Returns what a run record says of its backbone: hashes of its configuration and weights."""
    _tensor_names(folder)
    files = sorted(Path(folder).glob("*.safetensors"))
    return {
        "folder": str(folder),
        "config.json": config_hash(read_config(folder)),
        **{path.name: sha256_file(path) for path in files},
    }


def backbone_key(summary: dict[str, str]) -> str:
    """Returns what identifies a backbone's weights, from its `backbone_summary`."""
    return " ".join(value for name, value in summary.items() if name.endswith(".safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a model folder's config.json.

    Raises:
        InputError: No such folder, or no readable config.json.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (a model was expected)")
    return read_json(folder / "config.json")


def _tensor_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                names |= set(tensors.keys())
        except Exception as error:  # safetensors raises its own bare SafetensorError
            raise InputError(f"{path}: cannot be read: {error}") from error
    if not names:
        raise InputError(f"{folder}: holds no *.safetensors (other formats are not loaded)")
    return names


def load_pretrained(
    model_class: type[Model],
    folder: Path,
    attention: Attention = "sdpa",
    fresh: Set[str] = frozenset(),
    **config_changes: Any,
) -> Model:
    """Loads a model in float32 and accounts for every weight.

    Args:
        model_class: The model.
        folder: Model folder with safetensors.
        attention: How attention is computed; changes speed and memory, not what is computed.
        fresh: Weights that the folder may lack; they start at random.
        config_changes: Fields of the configuration to set.

    Raises:
        InputError: The folder cannot be read, or its weights do not fit the model.
    """
    _tensor_names(folder)
    try:
        config = model_class.config_class.from_pretrained(folder)
        config.update(config_changes)
        model, report = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{folder}: cannot be loaded: {reason}") from error
    missing = set(report["missing_keys"]) - fresh
    for problem in (missing, report["unexpected_keys"], report["mismatched_keys"]):
        if problem:
            names = ", ".join(str(name) for name in sorted(problem)[:3])
            raise InputError(f"{folder}: weights do not fit the model, for one: {names}")
    return model


def load_checkpoint(
    folder: Path,
    auto_class: Any,
    kind: str,
    option: str,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model and its tokenizer.

    Args:
        folder: Checkpoint with safetensors, its tokenizer beside it.
        auto_class: AutoModelForSequenceClassification or its like.
        kind: What a folder that lacks weights is not: "text classifier", …
        option: The option that named the folder, for messages.
        dtype: The weights are held in it.
        trust_remote_code: Run Python code that lies in the folder.

    Returns:
        The model in evaluation mode, on the processor, and the tokenizer.

    Raises:
        InputError: The folder is no such checkpoint, or its weights are pickled.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"{option}: {folder}: no model folder (no config.json)")
    try:
        # tokenizer.json as it is: AutoTokenizer would replace it by the model type's own class
        if (folder / "tokenizer.json").is_file():
            tokenizer = load_tokenizer(folder)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        model, report = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except InputError:
        raise
    except Exception as error:  # a spoilt file and code of others may raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"{option}: {folder}: cannot be loaded: {reason}") from error
    if report["missing_keys"]:
        raise InputError(
            f"{option}: {folder}: no {kind}, weights are missing, for one:"
            f" {min(report['missing_keys'])}"
        )
    return model.eval(), tokenizer

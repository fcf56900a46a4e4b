"""Loading what others trained: a local folder, weights in safetensors, no code unless asked for."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.tokenization import load_tokenizer
from utils.files import InputError


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

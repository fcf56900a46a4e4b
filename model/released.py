"""What a released monitor in checkpoints/ consists of, and how it becomes a whole model again."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from data.tokenization import load_tokenizer
from model.qwen_dual_task import QwenForDualTask, load_backbone
from utils.files import InputError, sha256_file

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names
PROBE = (
    "Streams are judged while they grow.\n\nThis sentence tells whether a model is the one meant."
)


def probe(model: QwenForDualTask, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """Scores `PROBE`.

    Returns:
        [tokens + 1] probabilities of harm, at each token and of the whole.
    """
    with torch.inference_mode():
        output = model.eval()(tokenizer(PROBE, return_tensors="pt")["input_ids"])
    logits = torch.cat([output.token_logits[0], output.holistic_logits])  # (tokens + 1, 2)
    return logits.float().softmax(-1)[:, 1].tolist()


def assemble(
    released: Path, about: dict[str, Any], backbone: Path
) -> tuple[QwenForDualTask, PreTrainedTokenizerFast]:
    """Adds a released adapter to its backbone.

    Args:
        released: Folder with the adapter.
        about: Its scm.json.
        backbone: Folder of the backbone.

    Returns:
        The whole model, float32, and its tokenizer.

    Raises:
        InputError: A file is missing, is not the one that scm.json names or does not fit.
    """
    for name, expected in about["sha256"].items():
        if sha256_file(released / name) != expected:
            raise InputError(f"{released / name}: sha256 is not that of scm.json")
    model = load_backbone(backbone, **about["heads"])
    try:
        model = PeftModel.from_pretrained(model, str(released)).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{released / ADAPTER}: does not fit {backbone}: {reason}") from error
    return model, load_tokenizer(backbone)

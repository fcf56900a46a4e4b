"""Which parameters train: all, the last layers, or low-rank adapters."""

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from model.qwen_dual_task import QwenForDualTask
from utils.files import InputError


def freeze_all_but_last(model: QwenForDualTask, layers: int) -> None:
    """Leaves the last layers, the final norm and both heads trainable.

    Raises:
        InputError: The backbone has fewer layers.
    """
    depth = model.config.num_hidden_layers
    if layers > depth:
        raise InputError(f"--last-layers: {layers} of a backbone with {depth} layers")
    model.model.embed_tokens.requires_grad_(False)
    for layer in model.model.layers[: depth - layers]:
        layer.requires_grad_(False)


def add_lora(model: QwenForDualTask, rank: int, alpha: int, dropout: float) -> PeftModel:
    """Puts low-rank adapters on the backbone's linear layers; the heads train in full.

    Args:
        model: The model to wrap.
        rank: Rank of the adapters.
        alpha: Numerator of their scale alpha / rank.
        dropout: Dropout before them.
    """
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules="q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split(),
            modules_to_save=["token_classifier", "sequence_classifier"],
        ),
    )


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Counts all parameters and the trained ones."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "all": sum(size for size, _ in sizes),
        "trained": sum(size for size, trained in sizes if trained),
    }

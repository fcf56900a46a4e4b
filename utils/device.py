"""The device that models run on, and the precision they compute in."""

import contextlib

import torch

from utils.options import Precision


def default_device() -> torch.device:
    """Returns the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Decides whether to compute in bfloat16; "auto" does on hardware made for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # a training step of 135M takes 0.68 of fp32's time with AVX-512 BF16 alone (AMD EPYC)
    made_for_it = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and made_for_it


def autocast(bf16: bool, device: torch.device) -> contextlib.AbstractContextManager:
    """Returns the mixed-precision context of a forward pass."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

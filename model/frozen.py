"""Frozen layers computed once: their output is kept on disk and fed to the layers that train."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.qwen_dual_task import QwenForDualTask
from utils.predict import autocast
from utils.splits import Examples, collate, token_budget_batches


class Skip(nn.Module):
    """Stands where a layer was taken out."""

    def forward(self, hidden_states: Tensor, **_) -> Tensor:
        return hidden_states


def take_frozen_layers(model: QwenForDualTask) -> list[nn.Module]:
    """Takes the frozen layers out of a model, which from now on is fed with their output.

    Returns:
        The layers, first to last; `put_frozen_layers` puts them back.
    """
    layers = model.model.layers
    frozen = [layer for layer in layers if not next(layer.parameters()).requires_grad]
    model.model.layers = nn.ModuleList([*(Skip() for _ in frozen), *layers[len(frozen) :]])
    return frozen


def put_frozen_layers(model: QwenForDualTask, frozen: list[nn.Module]) -> None:
    """Puts back what `take_frozen_layers` took out."""
    model.model.layers = nn.ModuleList([*frozen, *model.model.layers[len(frozen) :]])


@contextmanager
def _only(model: QwenForDualTask, frozen: list[nn.Module]) -> Iterator[nn.Module]:
    """Yields the backbone reduced to its embeddings and frozen layers."""
    backbone = model.model
    kept, norm = backbone.layers, backbone.norm
    backbone.layers = nn.ModuleList([*frozen, *(Skip() for _ in kept[len(frozen) :])])
    backbone.norm = nn.Identity()
    try:
        yield backbone
    finally:
        backbone.layers, backbone.norm = kept, norm


def feed_from_cache(
    model: QwenForDualTask,
    splits: Sequence[Examples],
    folder: Path,
    *,
    backbone: str,
    bf16: bool,
    token_budget: int,
) -> list[nn.Module]:
    """Takes the frozen layers out of a model and hands their output to the splits.

    Args: see `frozen_states`.

    Returns:
        The layers taken out, moved to the CPU.
    """
    frozen = take_frozen_layers(model)
    for examples in splits:
        examples.frozen_states = frozen_states(
            model, frozen, examples, folder, backbone=backbone, bf16=bf16, token_budget=token_budget
        )
    for layer in frozen:
        layer.cpu()
    return frozen


@torch.inference_mode()
def frozen_states(
    model: QwenForDualTask,
    frozen: list[nn.Module],
    examples: Examples,
    folder: Path,
    *,
    backbone: str,
    bf16: bool,
    token_budget: int,
) -> list[np.ndarray]:
    """Computes what frozen layers make of each example, or reads it where it lies on disk already.

    The residual stream reaches 27,000 (measured on SmolLM2-135M): it is kept in float32.

    Args:
        model: The model the layers were taken from, without dropout in its backbone.
        frozen: The layers.
        examples: N examples; their labels do not matter.
        folder: Cache shared by runs; a file a split, 4 bytes × tokens × hidden size.
        backbone: What identifies the backbone's weights.
        bf16: Compute in bfloat16.
        token_budget: Padded tokens a batch holds at the most.

    Returns:
        [N] float32 arrays [L, hidden], mapped from disk.
    """
    depth = f"{backbone} {len(frozen)} {model.config._attn_implementation} {bf16}"
    key = hashlib.sha256(depth.encode())
    for ids in examples.input_ids:
        key.update(len(ids).to_bytes(4) + ids.astype("<i4").tobytes())
    path = Path(folder) / f"{key.hexdigest()[:32]}.npy"
    bounds = np.cumsum([0, *examples.lengths])
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        shape = (int(bounds[-1]), model.config.hidden_size)
        device = next(model.parameters()).device
        try:
            states = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            with (
                _only(model, frozen) as trunk,
                tqdm(total=shape[0], desc="frozen layers", unit="token") as bar,
            ):
                for indices in token_budget_batches(examples.lengths, token_budget):
                    batch = collate([examples[index] for index in indices])
                    mask = batch["attention_mask"].to(device)
                    with autocast(bf16, device):
                        output = trunk(batch["input_ids"].to(device), attention_mask=mask)
                    for hidden, index in zip(output.last_hidden_state, indices, strict=True):
                        length = bounds[index + 1] - bounds[index]
                        states[bounds[index] : bounds[index + 1]] = hidden[:length].float().cpu()
                        bar.update(int(length))
            states.flush()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    states = np.load(path, mmap_mode="r")
    return [states[start:end] for start, end in zip(bounds[:-1], bounds[1:], strict=True)]

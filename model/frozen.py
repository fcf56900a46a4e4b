"""Frozen layers computed once: their output is kept on disk and fed to the layers that train."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.batches import collate, token_budget_batches
from data.splits import Examples
from model.loading import config_hash
from model.qwen_dual_task import QwenForDualTask
from utils.device import autocast
from utils.files import InputError, read_json, write_json


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
        folder: Cache shared by runs; 4 bytes × tokens × hidden size.
        backbone: What identifies the backbone's weights.
        bf16: Compute in bfloat16.
        token_budget: Padded tokens a batch holds at the most.

    Returns:
        [N] float32 arrays [L, hidden], mapped from disk.

    Raises:
        InputError: The disk has no room for them.
    """
    config, attention = config_hash(model.config.to_dict()), model.config._attn_implementation
    maker = f"{backbone} {config} {len(frozen)} {attention} {bf16}"
    folder = Path(folder) / hashlib.sha256(maker.encode()).hexdigest()[:16]
    keys = [hashlib.sha256(ids.astype("<i4")).hexdigest()[:32] for ids in examples.input_ids]
    known = _read_shards(folder)
    new = {key: place for place, key in enumerate(keys) if key not in known}
    if new:
        _write_shard(model, frozen, examples, folder, new, bf16, token_budget)
        known = _read_shards(folder)
    return [known[key] for key in keys]


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    """Maps all states that are there. A shard is there once its list of keys is."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.json")):
        states = np.load(path.with_suffix(".npy"), mmap_mode="r")  # (tokens, hidden)
        start = 0
        for key, length in read_json(path):
            known[key] = states[start : start + length]
            start += length
    return known


def _write_shard(
    model: QwenForDualTask,
    frozen: list[nn.Module],
    examples: Examples,
    folder: Path,
    new: dict[str, int],
    bf16: bool,
    token_budget: int,
) -> None:
    """Computes the states of the examples at the places of `new` into one more shard."""
    places = np.array(list(new.values()))
    lengths = examples.lengths[places]
    bounds = np.cumsum([0, *lengths])
    name = hashlib.sha256(" ".join(new).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.{os.getpid()}.partial"
    device = next(model.parameters()).device
    try:
        states = _new_array(partial, int(bounds[-1]), model.config.hidden_size)
        with (
            _only(model, frozen) as trunk,
            tqdm(total=len(states), desc="frozen layers", unit="token") as bar,
        ):
            for rows in token_budget_batches(lengths, token_budget):
                batch = collate([examples[place] for place in places[rows]])
                mask = batch["attention_mask"].to(device)
                with autocast(bf16, device):
                    output = trunk(batch["input_ids"].to(device), attention_mask=mask)
                for hidden, row in zip(output.last_hidden_state.float().cpu(), rows, strict=True):
                    states[bounds[row] : bounds[row + 1]] = hidden[: lengths[row]]
                    bar.update(int(lengths[row]))
        states.flush()
        os.replace(partial, folder / f"{name}.npy")
        pairs = zip(new, lengths.tolist(), strict=True)
        write_json(folder / f"{name}.json", [[key, length] for key, length in pairs])
    finally:
        partial.unlink(missing_ok=True)


def _new_array(path: Path, rows: int, columns: int) -> np.ndarray:
    """Maps a new float32 .npy file, (rows, columns), with all its space on disk taken already.

    Where a disk fills up under a mapped file, the kernel kills the process (SIGBUS).
    """
    needed, free = 4 * rows * columns, shutil.disk_usage(path.parent).free
    full = InputError(
        f"{path.parent}: no room for the frozen layers' output: {needed:,} bytes needed,"
        f" {free:,} free"
    )
    if needed > free:  # asked first: who allocates in vain leaves others without a byte meanwhile
        raise full
    try:
        array = np.lib.format.open_memmap(path, "w+", np.float32, shape=(rows, columns))
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full from None
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # file systems that cannot allocate
            raise
    return array


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

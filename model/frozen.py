"""Frozen layers are computed once: the layers that train read their output from disk."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.batches import collate, token_budget_batches
from data.splits import Examples
from model.loading import config_hash
from model.qwen_dual_task import QwenForDualTask
from utils.device import autocast
from utils.files import InputError, read_json, write_json


def read_frozen_layers(
    model: QwenForDualTask,
    last_layers: int,
    splits: Sequence[Examples],
    cache: str,
    *,
    backbone: dict[str, str],
    bf16: bool,
    token_budget: int,
) -> None:
    """Makes a model read the frozen layers' output from disk; computes first what is missing there.

    The model keeps its layers' names and weights, but its backbone starts with the first trained
    layer, from `inputs_embeds`. The residual stream reaches 27,000 (measured on SmolLM2-135M), so
    it is kept in float32.

    Args:
        model: The model, without dropout in its backbone.
        last_layers: Number of layers that are not frozen.
        splits: All texts that the model will be given.
        cache: Folder shared by runs; 4 bytes × tokens × hidden size.
        backbone: From `backbone_summary`.
        bf16: Compute in bfloat16.
        token_budget: Padded tokens a batch holds at the most.

    Raises:
        InputError: The disk has no room for the layers' output.
    """
    config, attention = config_hash(model.config.to_dict()), model.config._attn_implementation
    depth = model.config.num_hidden_layers - last_layers
    weights = " ".join(backbone[name] for name in backbone if name.endswith(".safetensors"))
    maker = f"{weights} {config} {depth} {attention} {bf16}"
    folder = Path(cache) / hashlib.sha256(maker.encode()).hexdigest()[:16]
    known = _read_shards(folder)
    texts = {_key(text["input_ids"]): text for examples in splits for text in examples}
    if new := {key: text for key, text in texts.items() if key not in known}:
        _write_shard(model, depth, folder, new, bf16, token_budget)
        known = _read_shards(folder)

    def feed(backbone: nn.Module, args: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict]:
        ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(dim=1).tolist()
        states = torch.zeros(*ids.shape, model.config.hidden_size)  # (batch, seq_len, hidden)
        for row, length in enumerate(lengths):
            key = _key(ids[row, :length].cpu().numpy())
            states[row, :length] = torch.from_numpy(np.array(known[key]))
        return args, inputs | {"input_ids": None, "inputs_embeds": states.to(ids.device)}

    for layer in model.model.layers[:depth]:
        layer.forward = lambda hidden_states, **_: hidden_states
    model.model.register_forward_pre_hook(feed, with_kwargs=True)


def _key(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.astype("<i4")).hexdigest()[:32]


def _read_shards(folder: Path) -> dict[str, np.ndarray]:
    """Maps all states on disk by key. A shard's list of keys is written last."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.json")):
        states = np.load(path.with_suffix(".npy"), mmap_mode="r")  # (tokens, hidden)
        start = 0
        for key, length in read_json(path):
            known[key] = states[start : start + length]
            start += length
    return known


@torch.inference_mode()
def _write_shard(
    model: QwenForDualTask,
    depth: int,
    folder: Path,
    new: dict[str, dict[str, Any]],
    bf16: bool,
    token_budget: int,
) -> None:
    """Writes the first layers' output for the texts of `new`, by key, into one more shard."""
    keys, texts, backbone = list(new), list(new.values()), model.model
    lengths = np.array([len(text["input_ids"]) for text in texts])
    shape = (int(lengths.sum()), model.config.hidden_size)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = 4 * shape[0] * shape[1], shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: no room for the frozen layers' output: {needed:,} bytes needed,"
            f" {free:,} free"
        )
    name = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]
    partial, written = folder / f".{name}.{os.getpid()}.partial", []
    layers, norm, device = backbone.layers, backbone.norm, model.device
    backbone.layers, backbone.norm = layers[:depth], nn.Identity()
    try:
        with open(partial, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            bar = tqdm(total=shape[0], desc="frozen layers", unit="token")
            for rows in token_budget_batches(lengths, token_budget):
                batch = collate([texts[row] for row in rows])
                batch = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
                with autocast(bf16, device):
                    output = backbone(**batch)
                for hidden, row in zip(output.last_hidden_state.float().cpu(), rows, strict=True):
                    file.write(hidden[: lengths[row]].numpy().tobytes())
                    written.append([keys[row], int(lengths[row])])
                bar.update(int(lengths[rows].sum()))
            bar.close()
        os.replace(partial, folder / f"{name}.npy")
        write_json(folder / f"{name}.json", written)
    except OSError as error:
        error.filename = error.filename or str(folder)  # a full disk does not name it
        raise
    finally:
        backbone.layers, backbone.norm = layers, norm
        partial.unlink(missing_ok=True)


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

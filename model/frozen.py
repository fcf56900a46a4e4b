"""Frozen layers are computed once: the layers that train read their output from disk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from data.batches import pad, token_budget_batches
from model.loading import config_hash
from model.state_store import read_states, state_key, states_folder, write_states
from utils.device import autocast
from utils.files import InputError


def read_frozen_layers(
    model: PreTrainedModel,
    last_layers: int,
    splits: Sequence[Iterable[Mapping[str, Any]]],
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
        splits: All texts that the model will be given, in their field `input_ids`.
        cache: Folder shared by runs; 4 bytes × tokens × hidden size.
        backbone: From `backbone_summary`.
        bf16: Compute in bfloat16.
        token_budget: Padded tokens a batch holds at the most.

    Raises:
        InputError: The disk has no room for the layers' output.
    """
    # trainers write the padding's id into a configuration; padding is masked
    config = config_hash(model.config.to_dict() | {"pad_token_id": None})
    attention = model.config._attn_implementation
    depth = model.config.num_hidden_layers - last_layers
    weights = " ".join(backbone[name] for name in backbone if name.endswith(".safetensors"))
    maker = f"{weights} {config} {depth} {attention} {bf16}"
    folder = states_folder(Path(cache), maker)
    known = read_states(folder)
    texts = {state_key(text["input_ids"]): text for examples in splits for text in examples}
    if new := {key: text for key, text in texts.items() if key not in known}:
        tokens = sum(len(text["input_ids"]) for text in new.values())
        states = _compute(model, depth, new, bf16, token_budget)
        shape = tokens, model.config.hidden_size
        write_states(folder, list(new), shape, states, "the frozen layers' output")
        known = read_states(folder)

    def feed(backbone: nn.Module, args: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict]:
        ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(dim=1).tolist()
        states = torch.zeros(*ids.shape, model.config.hidden_size)  # (batch, seq_len, hidden)
        for row, length in enumerate(lengths):
            key = state_key(ids[row, :length].cpu().numpy())
            states[row, :length] = torch.from_numpy(np.array(known[key]))
        return args, inputs | {"input_ids": None, "inputs_embeds": states.to(ids.device)}

    for layer in model.base_model.layers[:depth]:
        layer.forward = lambda hidden_states, **_: hidden_states
    model.base_model.register_forward_pre_hook(feed, with_kwargs=True)


@torch.inference_mode()
def _compute(
    model: PreTrainedModel,
    depth: int,
    new: dict[str, Mapping[str, Any]],
    bf16: bool,
    token_budget: int,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the first layers' output for the texts of `new`, by key."""
    keys, texts, backbone = list(new), list(new.values()), model.base_model
    lengths = np.array([len(text["input_ids"]) for text in texts])
    layers, norm, device = backbone.layers, backbone.norm, model.device
    backbone.layers, backbone.norm = layers[:depth], nn.Identity()
    try:
        with tqdm(total=int(lengths.sum()), desc="frozen layers", unit="token") as bar:
            for rows in token_budget_batches(lengths, token_budget):
                ids, mask = pad([texts[row]["input_ids"] for row in rows])
                with autocast(bf16, device):
                    output = backbone(input_ids=ids.to(device), attention_mask=mask.to(device))
                for hidden, row in zip(output.last_hidden_state.float().cpu(), rows, strict=True):
                    yield keys[row], hidden[: lengths[row]].numpy()
                bar.update(int(lengths[rows].sum()))
    finally:
        backbone.layers, backbone.norm = layers, norm


def freeze_all_but_last(model: PreTrainedModel, layers: int) -> None:
    """Leaves the last layers, the final norm and the heads trainable.

    Raises:
        InputError: The backbone has fewer layers, or none by this name.
    """
    if not hasattr(model.base_model, "layers"):
        raise InputError(f"--last-layers: {type(model).__name__} has no 'layers'")
    depth = model.config.num_hidden_layers
    if layers > depth:
        raise InputError(f"--last-layers: {layers} of a backbone with {depth} layers")
    model.get_input_embeddings().requires_grad_(False)
    for layer in model.base_model.layers[: depth - layers]:
        layer.requires_grad_(False)

"""Many streams in one forward pass, each against a key-value cache of its own.

All streams' new tokens lie side by side in one sequence without padding: the weights are read once
for all of them, and only attention looks at each stream by itself. A stream alone is the same code
with one stream in it.

Why not what transformers has: `DynamicCache` copies everything at each token, `StaticCache` attends
to its full capacity and pads ragged lengths; continuous batching samples tokens inside its loop and
hands out no hidden states.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from model.options import ScoreWith
from model.qwen_dual_task import QwenForDualTask
from utils.files import InputError

ATTENTION = "packed-streams"
SMALLEST_CACHE = 64  # tokens


class KeyValues:
    """Keys and values of one stream, in memory that doubles when it is full.

    Args:
        layers: Of the backbone.
        limit: Most tokens it will ever hold.
    """

    def __init__(self, layers: int, limit: int) -> None:
        self._layers: list[Tensor | None] = [None] * layers  # (2, kv_heads, capacity, head_dim)
        self._limit, self.length = limit, 0

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return sum(layer.nbytes for layer in self._layers if layer is not None)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new tokens' keys and values, (kv_heads, new, head_dim); returns all of them.

        `length` moves on once all layers have been through.
        """
        heads, new, size = key.shape
        end, stored = self.length + new, self._layers[layer]
        if stored is None or end > stored.shape[2]:
            capacity = SMALLEST_CACHE
            while capacity < end:
                capacity *= 2
            grown = key.new_empty(2, heads, min(capacity, max(self._limit, end)), size)
            if stored is not None:
                grown[:, :, : self.length] = stored[:, :, : self.length]
            self._layers[layer] = stored = grown
        stored[0, :, self.length : end], stored[1, :, self.length : end] = key, value
        return stored[0, :, :end], stored[1, :, :end]

    def free(self) -> None:
        """Lets go of the memory."""
        self._layers, self.length = [None] * len(self._layers), 0


@dataclass
class _Part:
    """One stream's place in the packed sequence."""

    cache: KeyValues
    start: int
    end: int
    mask: Tensor | None  # bool (group × new, length), true where a token may look


def _attend(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head_dim)
    key: Tensor,  # (1, kv_heads, tokens, head_dim)
    value: Tensor,
    attention_mask: None,
    scaling: float,
    packed: Sequence[_Part],
    **_,
) -> tuple[Tensor, None]:
    """Lets each stream's new tokens look at their own past; (1, tokens, heads, head_dim)."""
    _, heads, tokens, size = query.shape
    groups = key.shape[1]
    output = query.new_empty(heads, tokens, size)
    for part in packed:
        here = slice(part.start, part.end)
        keys, values = part.cache.append(module.layer_idx, key[0, :, here], value[0, :, here])
        # the heads that share keys stand below each other: nothing is repeated in memory
        grouped = query[0, :, here].reshape(1, groups, -1, size)
        attended = scaled_dot_product_attention(
            grouped, keys[None], values[None], attn_mask=part.mask, scale=scaling
        )
        output[:, here] = attended.view(heads, -1, size)
    return output.transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, _attend)


class Scorer:
    """Scores new tokens of any number of streams. Safe to call from several threads.

    Args:
        model: A dual-task model; it belongs to the scorer from now on.
        score_with: Which scorer gives the token probabilities.

    Raises:
        InputError: A backbone whose attention slides over a window.
    """

    def __init__(self, model: QwenForDualTask, score_with: ScoreWith) -> None:
        if set(model.config.layer_types) != {"full_attention"}:
            raise InputError("config.json: field 'layer_types': only full attention is followed")
        model.set_attn_implementation(ATTENTION)
        self._backbone, self._lock = model.eval().model, threading.Lock()
        token_scorer = score_with == "token"
        self._head = model.token_classifier if token_scorer else model.sequence_classifier
        self._config = model.config

    @property
    def context(self) -> int:
        """Most tokens of a stream, prompt included."""
        return self._config.max_position_embeddings

    def new_cache(self, limit: int) -> KeyValues:
        """Returns an empty cache of at most `limit` tokens."""
        return KeyValues(self._config.num_hidden_layers, limit)

    @torch.inference_mode()
    def score(self, chunks: Sequence[tuple[KeyValues, Sequence[int]]]) -> list[np.ndarray]:
        """Reads each stream's next tokens and scores them.

        Args:
            chunks: A cache and its next token ids, at least one, of each stream.

        Returns:
            float32 [tokens] probability of harm at each, per stream.
        """
        device = self._backbone.embed_tokens.weight.device
        with self._lock:
            bounds = np.cumsum([0, *(len(ids) for _, ids in chunks)])
            ids = np.concatenate([np.asarray(ids, dtype=np.int64) for _, ids in chunks])
            positions = np.concatenate(
                [np.arange(cache.length, cache.length + len(ids)) for cache, ids in chunks]
            )
            parts = [
                _Part(cache, start, end, self._mask(cache.length, end - start, device))
                for (cache, _), start, end in zip(chunks, bounds[:-1], bounds[1:], strict=True)
            ]
            hidden = self._backbone(
                input_ids=torch.from_numpy(ids).to(device)[None],
                position_ids=torch.from_numpy(positions).to(device)[None],
                attention_mask={"full_attention": None},
                use_cache=False,
                packed=parts,
            ).last_hidden_state  # (1, tokens, hidden)
            for part in parts:
                part.cache.length += part.end - part.start
            probs = self._head(hidden)[0].float().softmax(-1)[:, 1].cpu().numpy()  # (tokens,)
        return np.split(probs, bounds[1:-1])

    def _mask(self, past: int, new: int, device: torch.device) -> Tensor | None:
        if new == 1:
            return None
        mask = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
        group = self._config.num_attention_heads // self._config.num_key_value_heads
        return mask.repeat(group, 1)

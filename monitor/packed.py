"""Many streams in one forward pass, each against a key-value cache of its own.

All streams' new tokens lie side by side in one sequence without padding: the weights are read once
for all of them, and only attention looks at each stream by itself. Nothing of transformers does
that; docs/monitor.md says why.
"""

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from model.layer_states import LayerStates, model_fingerprint
from model.options import ScoreWith
from model.qwen_dual_task import QwenForDualTask
from utils.files import InputError

ATTENTION = "packed-streams"
SMALLEST_CACHE = 64  # tokens


class KeyValues:
    """Keys and values of one stream, at most `limit` tokens, in memory that doubles when full."""

    def __init__(self, layers: int, limit: int) -> None:
        self._layers: list[Tensor | None] = [None] * layers  # (2, kv_heads, capacity, head_dim)
        self._limit, self.length = limit, 0
        self.watched: int | None = None
        """Place of the token whose layers' states a scorer that keeps them leaves here."""
        self.states: np.ndarray | None = None  # float32 (layers, hidden)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(layer.nbytes for layer in self._layers if layer is not None)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new tokens' keys and values, (kv_heads, new, head_dim); returns all of them.

        `length` moves on once all layers have been through.
        """
        heads, new, size = key.shape
        end, stored = self.length + new, self._layers[layer]
        if stored is None or end > stored.shape[2]:
            capacity = max(SMALLEST_CACHE, 1 << (end - 1).bit_length())  # a power of two
            grown = key.new_empty(2, heads, min(capacity, self._limit), size)
            if stored is not None:
                grown[:, :, : self.length] = stored[:, :, : self.length]
            self._layers[layer] = stored = grown
        stored[0, :, self.length : end], stored[1, :, self.length : end] = key, value
        return stored[0, :, :end], stored[1, :, :end]

    def free(self) -> None:
        """Lets go of the memory."""
        self._layers, self.length = [None] * len(self._layers), 0


def _attend(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head_dim)
    key: Tensor,  # (1, kv_heads, tokens, head_dim)
    value: Tensor,
    attention_mask: None,
    scaling: float,
    packed: Sequence[tuple[KeyValues, slice, Tensor | None]],
    **_,
) -> tuple[Tensor, None]:
    """Lets each stream's new tokens look at their own past; (1, tokens, heads, head_dim).

    `packed` holds each stream's cache, its place in the sequence, and its mask, see `_mask`.
    """
    _, heads, tokens, size = query.shape
    groups = key.shape[1]
    output = query.new_empty(heads, tokens, size)
    for cache, here, mask in packed:
        keys, values = cache.append(module.layer_idx, key[0, :, here], value[0, :, here])
        # the heads that share keys stand below each other: nothing is repeated in memory
        grouped = query[0, :, here].reshape(1, groups, -1, size)
        attended = scaled_dot_product_attention(
            grouped, keys[None], values[None], attn_mask=mask, scale=scaling
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
        InputError: The backbone's attention slides over a window.
    """

    def __init__(self, model: QwenForDualTask, score_with: ScoreWith) -> None:
        if set(model.config.layer_types) != {"full_attention"}:
            raise InputError("config.json: field 'layer_types': only full attention is followed")
        model.set_attn_implementation(ATTENTION)
        self._backbone, self._lock = model.eval().model, threading.Lock()
        heads = {"token": model.token_classifier, "holistic": model.sequence_classifier}
        self._head, self._config, self._model = heads[score_with], model.config, model
        self.states: LayerStates | None = None
        """Of the layers, once they are kept."""

    @property
    def context(self) -> int:
        """Most tokens of a stream, prompt included."""
        return self._config.max_position_embeddings

    @property
    def layers(self) -> int:
        """Number of the backbone's layers."""
        return self._config.num_hidden_layers

    @property
    def hidden(self) -> int:
        """Size of a layer's state."""
        return self._config.hidden_size

    def new_cache(self, limit: int) -> KeyValues:
        """Returns an empty cache of at most `limit` tokens."""
        return KeyValues(self.layers, limit)

    def keep_states(self) -> None:
        """From now on passes leave the layers' states at a cache's watched place with the cache."""
        with self._lock:
            if self.states is None:
                self.states = LayerStates(self._model)
                self.states.resting = True

    def fingerprint(self) -> str:
        """Tells the backbone from others."""
        return model_fingerprint(self._model)

    def read_ends(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the layers' states at the end of each text, float32 (texts, layers, hidden)."""
        caches = [self.new_cache(len(ids)) for ids in texts]
        for cache, ids in zip(caches, texts, strict=True):
            cache.watched = len(ids) - 1
        self.score(list(zip(caches, texts, strict=True)))
        return np.stack([cache.states for cache in caches])

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
            ends = np.cumsum([len(new) for _, new in chunks])
            ids = np.concatenate([np.asarray(new, dtype=np.int64) for _, new in chunks])
            positions = np.concatenate(
                [np.arange(cache.length, cache.length + len(new)) for cache, new in chunks]
            )
            packed = [
                (cache, slice(end - len(new), end), self._mask(cache.length, len(new), device))
                for (cache, new), end in zip(chunks, ends, strict=True)
            ]
            watching = self._watch([(cache, len(new)) for cache, new in chunks], ends)
            hidden = self._backbone(
                input_ids=torch.from_numpy(ids).to(device)[None],
                position_ids=torch.from_numpy(positions).to(device)[None],
                attention_mask={"full_attention": None},
                use_cache=False,
                packed=packed,
            ).last_hidden_state  # (1, tokens, hidden)
            for cache, new in chunks:
                cache.length += len(new)
            if watching:
                self.states.resting = True
                for cache, states in zip(watching, self.states.take(), strict=True):
                    cache.states = states
            probs = self._head(hidden)[0].float().softmax(-1)[:, 1].cpu().numpy()  # (tokens,)
        return np.split(probs, ends[:-1])

    def _watch(self, chunks: Sequence[tuple[KeyValues, int]], ends: np.ndarray) -> list[KeyValues]:
        """Returns the caches whose watched place is in the next pass."""
        if self.states is None:
            return []
        watching, places = [], []
        for (cache, new), end in zip(chunks, ends, strict=True):
            if cache.watched is not None and 0 <= cache.watched - cache.length < new:
                watching.append(cache)
                places.append(int(end) - new + cache.watched - cache.length)
        if watching:
            self.states.at([0] * len(places), places)
        self.states.resting = not watching
        return watching

    def _mask(self, past: int, new: int, device: torch.device) -> Tensor | None:
        """Returns bool (group × new, past + new), true where a token may look; None for all."""
        if new == 1:
            return None
        mask = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
        group = self._config.num_attention_heads // self._config.num_key_value_heads
        return mask.repeat(group, 1)

"""ModernBERT's evaluation pass without the work that its judgement does not need.

The scores are those of `ModernBertForFullDetection`, up to rounding. What is left out:

- Before its attention the first layer knows of a token nothing but its embedding: queries, keys
  and values are computed once for each distinct token of a batch.
- Local layers attend block by block to the keys within reach, where transformers computes all pairs
  and masks most of them.
- Of the last layer the classifier reads the first token alone ("cls" pooling): the others' queries
  and feed-forward parts are never used, and values can be averaged before they are projected.
- Rotary embeddings are one complex product of neighbouring features instead of seven passes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

from model.modernbert import ModernBertForFullDetection
from model.qwen_dual_task import DualTaskOutput


class ModernBertInference(nn.Module):
    """Judges batches as the model that it wraps does, faster. It cannot be trained.

    Args:
        model: A trained model; it keeps its weights, of which queries', keys' and values'
            projections are copied.
    """

    def __init__(self, model: ModernBertForFullDetection) -> None:
        super().__init__()
        self.model = model
        self.heads = model.config.num_attention_heads
        self.head_dim = model.config.hidden_size // self.heads
        self.window = model.config.sliding_window  # tokens that a local layer looks to either side
        self.projections = nn.ModuleList(
            self._interleaved(layer.attn.Wqkv) for layer in model.model.layers
        )

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest
    ) -> DualTaskOutput:
        """Judges a batch.

        Args:
            input_ids: int (batch, seq_len).
            attention_mask: (batch, seq_len), 0 on padding, which is on the right; default all ones.
            rest: What only other models read.

        Returns:
            holistic_logits alone.
        """
        encoder = self.model.model
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        is_padding = attention_mask[:, None, None] == 0  # (batch, 1, 1, seq_len)
        distinct, places = input_ids.unique(return_inverse=True)
        embedded = encoder.embeddings(distinct)  # (distinct tokens, hidden)
        first = self.projections[0](encoder.layers[0].attn_norm(embedded))
        hidden = embedded[places]  # (batch, seq_len, hidden)

        padding = _penalty(is_padding, first.dtype) if is_padding.any() else None
        rotations = self._rotations(hidden)
        first_token_only = self.model.config.classifier_pooling == "cls"
        layers = list(zip(encoder.layers, self.projections, strict=True))
        for number, (layer, projection) in enumerate(layers[:-1] if first_token_only else layers):
            qkv = first[places] if number == 0 else projection(layer.attn_norm(hidden))
            self._layer(layer, qkv, hidden, rotations[layer.attention_type], padding)
        if first_token_only:
            layer, projection = layers[-1]
            pooled = self._first_token(
                layer, projection, hidden, rotations[layer.attention_type], padding
            )
            pooled = encoder.final_norm(pooled)
        else:
            weights = attention_mask / attention_mask.sum(1, keepdim=True)
            pooled = (encoder.final_norm(hidden) * weights[..., None]).sum(1)
        return DualTaskOutput(holistic_logits=self.model.classifier(self.model.head(pooled)))

    def _layer(
        self,
        layer: ModernBertEncoderLayer,
        qkv: Tensor,
        hidden: Tensor,
        rotation: Tensor,
        padding: Tensor | None,
    ) -> None:
        """Computes one layer in place.

        Args:
            layer: The layer.
            qkv: (batch, seq_len, 3 · hidden), queries, keys and values.
            hidden: (batch, seq_len, hidden).
            rotation: See `_rotations`.
            padding: See `_penalty`; (batch, 1, 1, seq_len), or None where nothing is padded.
        """
        split = qkv.unflatten(-1, (3 * self.heads, self.head_dim))
        rotated, value = split.split([2 * self.heads, self.heads], dim=2)
        query, key = _rotate(rotated, rotation).chunk(2, dim=2)
        attend = self._attend_near if layer.attention_type == "sliding_attention" else _attend
        hidden += layer.attn.Wo(attend(query, key, value, padding).flatten(2))
        activated, gate = layer.mlp.Wi(layer.mlp_norm(hidden)).chunk(2, dim=-1)
        hidden += layer.mlp.Wo(layer.mlp.act(activated).mul_(gate))

    def _attend_near(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None
    ) -> Tensor:
        """Attends to the tokens within the window, block by block; shapes as in `_attend`."""
        seq_len, window = query.shape[1], self.window
        if seq_len <= window + 1:
            return _attend(query, key, value, padding)
        # of a block as long as the window, and of the keys in reach of any of its tokens
        rows = torch.arange(window, device=query.device)[:, None]
        columns = torch.arange(-window, 2 * window, device=query.device)
        too_far = _penalty((rows - columns).abs() > window, query.dtype)
        blocks = []
        for start in range(0, seq_len, window):
            end = min(start + window, seq_len)
            first, last = max(0, start - window), min(seq_len, end + window)
            penalty = too_far[: end - start, first - start + window : last - start + window]
            if padding is not None:
                penalty = penalty + padding[..., first:last]
            near = slice(first, last)
            blocks.append(_attend(query[:, start:end], key[:, near], value[:, near], penalty))
        return torch.cat(blocks, dim=1)

    def _first_token(
        self,
        layer: ModernBertEncoderLayer,
        projection: nn.Linear,
        hidden: Tensor,
        rotation: Tensor,
        padding: Tensor | None,
    ) -> Tensor:
        """Returns what a layer makes of the first token, (batch, hidden); arguments as `_layer`.

        A head's output is W_v · Σ p_i x_i: one projection instead of one a token.
        """
        if layer.attention_type == "sliding_attention":
            hidden, rotation = hidden[:, : self.window + 1], rotation[: self.window + 1]
            padding = None if padding is None else padding[..., : self.window + 1]
        normed = layer.attn_norm(hidden)
        weights = projection.weight.chunk(3)
        biases = (None,) * 3 if projection.bias is None else projection.bias.chunk(3)
        query, key = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.heads, self.head_dim))
            for tokens, weight, bias in zip((normed[:, :1], normed), weights, biases, strict=False)
        )
        query, key = _rotate(query, rotation[:1]), _rotate(key, rotation)
        scores = torch.einsum("bqhd,bkhd->bhqk", query * self.head_dim**-0.5, key).float()
        if padding is not None:
            scores = scores + padding
        averages = scores.softmax(-1)[:, :, 0].to(normed.dtype) @ normed  # (batch, heads, hidden)
        by_head = weights[2].unflatten(0, (self.heads, self.head_dim))
        attended = torch.einsum("bhc,hdc->bhd", averages, by_head).flatten(1)
        if biases[2] is not None:
            attended = attended + biases[2]
        first = hidden[:, 0] + layer.attn.Wo(attended)
        return first + layer.mlp(layer.mlp_norm(first))

    def _rotations(self, hidden: Tensor) -> dict[str, Tensor]:
        """Returns each kind of layer's rotary factors, complex (seq_len, 1, head_dim / 2)."""
        rotary = self.model.model.rotary_emb
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotations = {}
        for kind in set(self.model.config.layer_types):
            cos, sin = rotary(hidden.float(), positions, kind)  # (1, seq_len, head_dim) each
            factors = torch.complex(cos, sin)[0, :, None]
            rotations[kind] = factors[..., : self.head_dim // 2]  # the other half repeats it
        return rotations

    @torch.no_grad()
    def _interleaved(self, projection: nn.Linear) -> nn.Linear:
        """Copies a projection, making neighbours of the features that rotary embeddings pair.

        Queries and keys are permuted alike, which changes no product of the two.
        """
        order = torch.arange(self.head_dim).view(2, -1).t().flatten()

        def permuted(tensor: Tensor) -> nn.Parameter:
            heads = tensor.detach().unflatten(0, (3, self.heads, self.head_dim)).clone()
            heads[:2] = heads[:2, :, order]
            return nn.Parameter(heads.flatten(0, 2))

        copy = nn.Linear(1, 1, bias=projection.bias is not None, device="meta")
        copy.weight = permuted(projection.weight)
        if projection.bias is not None:
            copy.bias = permuted(projection.bias)
        return copy


def _penalty(masked: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what is added to attention scores: 0, or about −∞ where something is masked.

    Two of them can be added without an overflow, and a row that is masked throughout stays finite.
    """
    lowest = torch.finfo(dtype).min / 4
    return torch.zeros(masked.shape, dtype=dtype, device=masked.device).masked_fill_(masked, lowest)


def _attend(query: Tensor, key: Tensor, value: Tensor, penalty: Tensor | None) -> Tensor:
    """Attends.

    Args:
        query: (batch, queries, heads, head_dim).
        key: (batch, keys, heads, head_dim).
        value: As key.
        penalty: See `_penalty`; broadcast to (batch, heads, queries, keys). None masks nothing.

    Returns:
        As query.
    """
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=penalty).transpose(1, 2)


def _rotate(states: Tensor, rotation: Tensor) -> Tensor:
    """Applies rotary embeddings, in float32, to interleaved features.

    Args:
        states: (batch, seq_len, heads, head_dim).
        rotation: complex (seq_len, 1, head_dim / 2).
    """
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(states.dtype)

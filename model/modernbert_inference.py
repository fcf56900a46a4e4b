"""ModernBERT's evaluation pass without the work that its judgement does not need.

This repeats the inside of transformers' ModernBERT, to make one baseline fast. After an upgrade of
transformers, run `test_inference_judges_as_transformers_does` in tests/model/test_modernbert.py: it
compares the scores with those of `ModernBertForFullDetection`, up to rounding. The savings:

- No padding: the tokens of a batch stand in one row, (tokens, …), and no attention is masked.
- In the first layer a token's query, key and value depend on the token alone, and a longer prefix
  only adds keys. Where a batch holds prefixes of one text, they are computed once, and each prefix
  adds its last keys to an attention over the keys that all of them share.
- Local layers attend block by block to the keys within reach, where transformers computes all pairs
  and masks most of them.
- With "cls" pooling, the classifier reads only the first token of the last layer: the others'
  queries and feed-forward parts are left out, and values are averaged before they are projected.
- Rotary embeddings are one complex product of neighbouring features instead of seven passes.
"""

from collections.abc import Callable
from copy import deepcopy
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer

from model.modernbert import ModernBertForFullDetection
from model.qwen_dual_task import DualTaskOutput

QUERY_BLOCK = 64  # queries whose scores over all keys are held at a time
CACHED_TOKENS = 2048  # tokens whose states stay in a processor's cache from one step to the next


class ModernBertInference(nn.Module):
    """Judges batches as a trained model does, but faster. It cannot be trained.

    The model's projections of queries, keys and values are copied, its other weights shared.
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
        # layers that have to be computed for every token
        self.whole = len(self.projections) - (model.config.classifier_pooling == "cls")
        self.register_buffer("near", _near(self.window), persistent=False)

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **rest
    ) -> DualTaskOutput:
        """Judges a batch.

        Args:
            input_ids: int (batch, seq_len).
            attention_mask: (batch, seq_len), 0 on padding, which is on the right; default all ones.
            rest: Inputs of other models, ignored.

        Returns:
            holistic_logits alone.
        """
        encoder = self.model.model
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        is_token = attention_mask != 0
        lengths = is_token.sum(1).tolist()
        positions = is_token.nonzero()[:, 1]  # (tokens,) of the batch without its padding
        ids = input_ids[is_token]  # (tokens,)
        longest = input_ids[lengths.index(max(lengths)), : max(lengths)]
        rotations = self._rotations(longest)

        done = int(
            len(lengths) > 1
            and torch.equal(longest[positions], ids)  # prefixes of one text
            and encoder.layers[0].attention_type == "full_attention"
            and self.whole > 0
        )
        if done:
            hidden = self._first_layer(longest, rotations, lengths)
        else:
            hidden = encoder.embeddings(ids)  # (tokens, hidden)
        on_cpu = ids.device.type == "cpu"
        texts = max(1, CACHED_TOKENS // len(longest)) if on_cpu else len(lengths)
        pooled, start = [], 0
        for first in range(0, len(lengths), texts):
            some = lengths[first : first + texts]
            here = slice(start, start := start + sum(some))
            turns = {kind: rotation[positions[here]] for kind, rotation in rotations.items()}
            pooled.append(self._pool(hidden[here], turns, some, done))
        logits = self.model.classifier(self.model.head(torch.cat(pooled)))
        return DualTaskOutput(holistic_logits=logits)

    def _first_layer(self, ids: Tensor, rotations: dict[str, Tensor], lengths: list[int]) -> Tensor:
        """Computes the first layer of all prefixes of one text; `ids` are the longest one's."""
        layer, projection = self.model.model.layers[0], self.projections[0]
        embedded = self.model.model.embeddings(ids)
        rotation = rotations[layer.attention_type]
        query, key, value = self._split(projection(layer.attn_norm(embedded)), rotation)
        hidden = torch.cat([embedded[:length] for length in lengths])  # (tokens, hidden)
        _finish(layer, hidden, _attend_prefixes(query, key, value, lengths))
        return hidden

    def _pool(
        self, hidden: Tensor, rotations: dict[str, Tensor], lengths: list[int], done: int
    ) -> Tensor:
        """Computes the layers after `done` ones, overwriting `hidden`; pools to (batch, hidden)."""
        encoder = self.model.model
        todo = slice(done, self.whole)
        for layer, projection in zip(encoder.layers[todo], self.projections[todo], strict=True):
            kind = layer.attention_type
            states = self._split(projection(layer.attn_norm(hidden)), rotations[kind])
            attend = self._attend_near if kind == "sliding_attention" else _attend
            _finish(layer, hidden, _by_length(attend, states, lengths))
        if self.whole < len(encoder.layers):
            return encoder.final_norm(self._first_tokens(hidden, rotations, lengths))
        texts = encoder.final_norm(hidden).split(lengths)
        return torch.stack([text.mean(0) for text in texts])

    def _split(self, qkv: Tensor, rotation: Tensor) -> list[Tensor]:
        """Splits (tokens, 3 · hidden) into queries and keys, both rotated, and values."""
        heads = qkv.unflatten(-1, (3 * self.heads, self.head_dim))
        rotated, value = heads.split([2 * self.heads, self.heads], dim=1)
        return [*_rotate(rotated, rotation).chunk(2, dim=1), value]  # (tokens, heads, head_dim)

    def _attend_near(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attends to the tokens within the window, block by block; shapes as in `_attend`."""
        seq_len, window = query.shape[1], self.window
        if seq_len <= window + 1:
            return _attend(query, key, value)
        near, blocks = self.near.to(query.dtype), []
        for start in range(0, seq_len, window):
            end = min(start + window, seq_len)
            first, last = max(0, start - window), min(seq_len, end + window)
            mask = near[: end - start, first - start + window : last - start + window]
            keys = slice(first, last)
            blocks.append(_attend(query[:, start:end], key[:, keys], value[:, keys], mask))
        return torch.cat(blocks, dim=1)

    def _first_tokens(
        self, hidden: Tensor, rotations: dict[str, Tensor], lengths: list[int]
    ) -> Tensor:
        """Computes the last layer of each text's first token, (batch, hidden); see `_pool`.

        A head's output is W_v · Σ p_i x_i: one projection instead of one a token.
        """
        layer, projection = self.model.model.layers[-1], self.projections[-1]
        rotation = rotations[layer.attention_type]
        normed = layer.attn_norm(hidden)
        weights = projection.weight.chunk(3)
        biases = (None,) * 3 if projection.bias is None else projection.bias.chunk(3)
        sizes = torch.tensor(lengths, device=hidden.device)
        starts = sizes.cumsum(0) - sizes
        query, key = (
            _rotate(
                F.linear(normed[which], weight, bias).unflatten(-1, (self.heads, self.head_dim)),
                rotation[which],
            )
            for which, weight, bias in zip((starts, slice(None)), weights, biases, strict=False)
        )
        reach = self.window + 1 if layer.attention_type == "sliding_attention" else max(lengths)
        averages = []
        texts = zip(query, key.split(lengths), normed.split(lengths), strict=True)
        for one, keys, tokens in texts:
            scores = torch.einsum("hd,khd->hk", one, keys[:reach]).float() * self.head_dim**-0.5
            averages.append(scores.softmax(-1).to(tokens.dtype) @ tokens[:reach])
        by_head = weights[2].unflatten(0, (self.heads, self.head_dim))
        attended = torch.einsum("bhc,hdc->bhd", torch.stack(averages), by_head).flatten(1)
        if biases[2] is not None:
            attended = attended + biases[2]
        first = hidden[starts]
        _finish(layer, first, attended)
        return first

    def _rotations(self, ids: Tensor) -> dict[str, Tensor]:
        """Returns rotary factors of `ids`, by kind of layer; complex (seq_len, 1, head_dim / 2)."""
        rotations = {}
        for kind in set(self.model.config.layer_types):
            places = torch.arange(len(ids), device=ids.device)[None]
            # the first argument gives nothing but dtype and device
            cos, sin = self.model.model.rotary_emb(places.float(), places, kind)
            factors = torch.complex(cos, sin)[0, :, None]  # (seq_len, 1, head_dim)
            rotations[kind] = factors[..., : self.head_dim // 2]  # the other half repeats it
        return rotations

    @torch.no_grad()
    def _interleaved(self, projection: nn.Linear) -> nn.Linear:
        """Copies a projection so that features that rotary embeddings pair become neighbours.

        Queries and keys are permuted alike, which changes no product of the two.
        """
        neighbours = torch.arange(self.head_dim).view(2, -1).t().flatten()
        order = torch.arange(len(projection.weight)).view(3, self.heads, self.head_dim)
        order[:2] = order[:2, :, neighbours]
        projection = deepcopy(projection)
        for parameter in projection.parameters():
            parameter.copy_(parameter[order.flatten()])
        return projection


def _finish(layer: ModernBertEncoderLayer, hidden: Tensor, attended: Tensor) -> None:
    """Completes a layer: adds its attention and feed-forward part to `hidden`, in place."""
    hidden += layer.attn.Wo(attended)
    activated, gate = layer.mlp.Wi(layer.mlp_norm(hidden)).chunk(2, dim=-1)
    hidden += layer.mlp.Wo(layer.mlp.act(activated).mul_(gate))


def _near(window: int) -> Tensor:
    """Returns the mask of a block of queries, 0 within the window to either side, else −∞.

    It is (window, 3 · window): the keys begin one window before the block and end one after it.
    """
    too_far = (torch.arange(window)[:, None] - torch.arange(-window, 2 * window)).abs() > window
    return torch.zeros(too_far.shape).masked_fill_(too_far, -torch.inf)


def _by_length(attend: Callable[..., Tensor], states: list[Tensor], lengths: list[int]) -> Tensor:
    """Attends within each text, (tokens, heads · head_dim); neighbours of one length together."""
    attended, start = [], 0
    for length, texts in groupby(lengths):
        end = start + length * len(list(texts))
        views = (part[start:end].unflatten(0, (-1, length)) for part in states)
        attended.append(attend(*views).flatten(0, 1).flatten(1))
        start = end
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attends; states are (batch, queries or keys, heads, head_dim), the mask (queries, keys)."""
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def _attend_prefixes(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """Attends within each prefix of one text; (sum of the lengths, heads · head_dim).

    Every softmax is split into the keys of the shortest prefix, computed once, and those beyond,
    each part with the largest score so far subtracted. States are (seq_len, heads, head_dim) of the
    longest prefix.
    """
    dtype, scale, common = query.dtype, query.shape[-1] ** -0.5, min(lengths)
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = (part.transpose(0, 1).float() for part in (query, key, value))
        query = query * scale
        shared = []
        for block in query.split(QUERY_BLOCK, dim=1):
            scores = block @ key[:, :common].mT  # (heads, block, common)
            largest = scores.amax(-1, keepdim=True)
            scores.sub_(largest).exp_()
            shared.append((largest, scores.sum(-1, keepdim=True), scores @ value[:, :common]))
        largest, total, weighted = (torch.cat(parts, dim=1) for parts in zip(*shared, strict=True))
        later = query @ key[:, common:].mT  # (heads, seq_len, keys beyond)
        largest_later = torch.cat([largest, later], dim=-1).cummax(-1).values
        attended = []
        for length in lengths:
            highest = largest_later[:, :length, length - common, None]
            before = (largest[:, :length] - highest).exp_()
            beyond = (later[:, :length, : length - common] - highest).exp_()
            numerator = weighted[:, :length] * before + beyond @ value[:, common:length]
            numerator /= total[:, :length] * before + beyond.sum(-1, keepdim=True)
            attended.append(numerator.transpose(0, 1).flatten(1))
        return torch.cat(attended).to(dtype)


def _rotate(states: Tensor, rotation: Tensor) -> Tensor:
    """Applies rotary factors, in float32, to interleaved features (tokens, heads, head_dim)."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(states.dtype)

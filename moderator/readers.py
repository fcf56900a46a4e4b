"""Where a prompt's states come from: a language model on its own, or the monitor's reading.

A third way reads nothing at all: `moderator.generation` takes the states out of the prefill of the
model that answers. They are those of `ChatReader` for the same model.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from data.batches import pad, token_budget_batches
from data.tokenization import tokenizer_fingerprint
from model.layer_states import LayerStates, model_fingerprint
from model.loading import context_length, load_checkpoint
from model.state_store import read_states, state_key, states_folder, write_states
from monitor.chat import ChatEncoder
from monitor.stream import StreamingContentMonitor
from utils.device import autocast, default_device
from utils.files import InputError
from utils.options import TOKEN_BUDGET

SHARD = 512  # prompts whose states are written together: what a killed run loses at the most
LONGEST = 4096  # tokens of a prompt that are read; its end counts


class Reader(Protocol):
    """Turns prompts into states: one row of each layer, at the prompt's last token.

    Attributes:
        layers: Their number.
        hidden: Size of a state.
    """

    layers: int
    hidden: int

    def about(self) -> dict[str, Any]:
        """Returns what the states depend on besides the prompt; equal for equal readings."""

    def encode(self, prompt: str) -> list[int]:
        """Returns the ids that are read."""

    def read(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Reads encoded prompts in one pass; returns float32 (prompts, layers, hidden)."""


def chat_source(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, encoder: ChatEncoder
) -> dict[str, Any]:
    """Returns what the states of prompts in a model's chat template depend on, see `Reader`."""
    template = "\0".join(encoder.parts)
    return {
        "kind": "chat",
        "model": model_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "layers": model.config.num_hidden_layers,
        "hidden": model.config.hidden_size,
    }


class ChatReader:
    """Reads prompts with a language model, in its chat template, up to where it would answer.

    Args:
        model: The model; its language modelling head is not asked.
        tokenizer: Its tokenizer.
        bf16: Compute in bfloat16.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, bf16: bool = False
    ) -> None:
        self.model, self.tokenizer, self._bf16 = model.eval(), tokenizer, bf16
        self._encoder = ChatEncoder(tokenizer, min(context_length(model, tokenizer), LONGEST))
        self._states = LayerStates(model)
        self._states.resting = True
        self.layers, self.hidden = self._states.layers, self._states.hidden

    @classmethod
    def from_pretrained(cls, folder: Path, bf16: bool = False) -> "ChatReader":
        """Loads a language model's folder.

        Raises:
            InputError: It holds none.
        """
        option = "--base-model-path"
        model, tokenizer = load_checkpoint(folder, AutoModelForCausalLM, "language model", option)
        return cls(model.to(default_device()), tokenizer, bf16)

    def about(self) -> dict[str, Any]:
        """See `Reader`."""
        return chat_source(self.model, self.tokenizer, self._encoder)

    def encode(self, prompt: str) -> list[int]:
        """See `Reader`; of a prompt that the context has no room for, the end."""
        return self._encoder.encode(prompt)

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Reader`."""
        ids, mask = pad(texts)
        device = self.model.device
        self._states.at(range(len(texts)), [len(text) - 1 for text in texts])
        self._states.resting = False
        try:
            with autocast(self._bf16, device):
                self.model.base_model(
                    input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False
                )
            return self._states.take()
        finally:
            self._states.resting = True


class MonitorReader:
    """Reads prompts as the monitor does before each response, which costs nothing there.

    Args:
        monitor: The monitor.
    """

    def __init__(self, monitor: StreamingContentMonitor) -> None:
        self._monitor = monitor
        monitor.scorer.keep_states()
        self.layers, self.hidden = monitor.scorer.layers, monitor.scorer.hidden

    def about(self) -> dict[str, Any]:
        """See `Reader`."""
        return self._monitor.prompt_source()

    def encode(self, prompt: str) -> list[int]:
        """See `Reader`; of a prompt that fills more than half of the context, the end."""
        return self._monitor.prompt_ids(prompt)

    def read(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Reader`."""
        return self._monitor.scorer.read_ends(texts)


def read_prompt_states(
    reader: Reader, prompts: Sequence[str], cache: Path, bf16: bool = False
) -> list[np.ndarray]:
    """Returns the states of prompts, float32 [N] × (layers, hidden), mapped from disk.

    What is missing there is computed first, in batches of like length; interrupted, it goes on
    where it was.

    Args:
        reader: Where they come from.
        prompts: N texts.
        cache: Folder that all readers may share; 4 bytes × prompts × layers × hidden size.
        bf16: Whether the reader computes in bfloat16, which gives other states.

    Raises:
        InputError: A state is not a number, or the disk has no room.
    """
    maker = "\0".join(map(str, [*reader.about().values(), bf16]))
    folder = states_folder(Path(cache), maker)
    encoded = [reader.encode(prompt) for prompt in prompts]
    keys = [state_key(ids) for ids in encoded]
    texts = dict(zip(keys, encoded, strict=True))
    known = read_states(folder)
    missing = [key for key in texts if key not in known]
    missing.sort(key=lambda key: len(texts[key]), reverse=True)  # a shard's prompts are alike
    with tqdm(total=len(missing), desc="prompts", unit="prompt", disable=not missing) as bar:
        for start in range(0, len(missing), SHARD):
            part = missing[start : start + SHARD]
            shape = len(part) * reader.layers, reader.hidden
            states = _compute(reader, {key: texts[key] for key in part}, bar)
            write_states(folder, part, shape, states, "the prompts' states")
    if missing:
        known = read_states(folder)
    return [known[key] for key in keys]


def _compute(
    reader: Reader, texts: dict[str, list[int]], bar: tqdm
) -> Iterator[tuple[str, np.ndarray]]:
    keys, encoded = list(texts), list(texts.values())
    lengths = np.array([len(ids) for ids in encoded])
    for rows in token_budget_batches(lengths, TOKEN_BUDGET):
        states = reader.read([encoded[row] for row in rows])
        if not np.isfinite(states).all():
            raise InputError(
                "the model's states of a prompt are not numbers; its weights are spoilt"
            )
        yield from zip((keys[row] for row in rows), states, strict=True)
        bar.update(len(rows))

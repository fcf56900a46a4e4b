"""What a guard reads: the text of an example, written as its chat template wants it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data.splits import Examples
from data.tokenization import TextEncoder
from evaluation.options import Strictness
from evaluation.predict import Scores
from evaluation.predictions import token_pieces
from model.loading import context_length, load_checkpoint
from utils.device import default_device, use_bf16
from utils.files import InputError
from utils.options import Precision

OPTION = "--model-path"

# A verdict's harm. Source: eval/eval_stream.py of github.com/QwenLM/Qwen3Guard.
HARM: dict[Strictness, dict[str, float]] = {
    "strict": {"safe": 0.0, "controversial": 1.0, "unsafe": 1.0},
    "loose": {"safe": 0.0, "controversial": 0.0, "unsafe": 1.0},
}

FIRST, LAST = 0xF0000, 0x10FFFF  # private use: no text's own
PLACES = re.compile(f"([{chr(FIRST)}-{chr(LAST)}])")


@dataclass
class Dialogue:
    """The text of one example of T response tokens.

    Attributes:
        id: Of the record.
        prompt: Without the two newlines that the data format puts after it.
        response: What its tokens spell.
        ends: int [T], the characters of the response that are out after each token. A token that
            ends within a character has not brought it yet.
    """

    id: str
    prompt: str
    response: str
    ends: np.ndarray


def read_dialogues(examples: Examples, tokenizer: PreTrainedTokenizerFast) -> list[Dialogue]:
    """Turns the examples of a split back into text, with the data folder's tokenizer."""
    dialogues = []
    columns = (examples.ids, examples.input_ids, examples.response_start)
    for id_, ids, start in zip(*columns, strict=True):
        prompt = "".join(token_pieces(tokenizer, ids[:start]))  # leaves [BOS] and [CLS] out
        pieces = token_pieces(tokenizer, ids[start:])
        ends = np.cumsum([len(piece) for piece in pieces])
        dialogues.append(Dialogue(id_, prompt.removesuffix("\n\n"), "".join(pieces), ends))
    return dialogues


@dataclass
class Judged:
    """A guard's scores of a split, and the number of responses that it did not read to the end."""

    scores: Scores
    cut: int


class Chat:
    """Writes dialogues as a guard's chat template wants them.

    Prompt and response are text: where they spell a control token, such as "<|im_end|>", the guard
    reads its letters, so that no response can close its turn. While the template is filled in, a
    private-use character stands for such a spelling.

    Args:
        tokenizer: The guard's.
        where: The folder it comes from, for messages.

    Raises:
        InputError: There is no template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, where: str) -> None:
        if not tokenizer.chat_template:
            raise InputError(f"{where}: its tokenizer has no chat template")
        self.tokenizer, self.where = tokenizer, where
        self.encoder = TextEncoder(tokenizer.backend_tokenizer)
        self.spelled: list[str] = []  # spellings met so far, in the order of their stand-ins

    def render(self, turns: Iterable[tuple[str, str]], in_parts: bool = False, **options) -> str:
        """Fills in the template, up to the answer that follows.

        Args:
            turns: (role, text) pairs.
            in_parts: Whether the template takes lists of parts.
            options: Of the template.

        Raises:
            InputError: The template refuses the turns.
        """
        messages: list[dict[str, Any]] = []
        for role, text in turns:
            text = self._cover(text)
            content = [{"type": "text", "text": text}] if in_parts else text
            messages.append({"role": role, "content": content})
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **options
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise InputError(f"{self.where}: its chat template fails: {error}") from error

    def encode(self, rendered: str) -> list[int]:
        """Returns the ids of what `render` wrote."""
        ids: list[int] = []
        for part in PLACES.split(rendered):
            if PLACES.fullmatch(part):
                ids += self.encoder.encode(self.spelled[ord(part) - FIRST]).ids
            else:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids

    def prompt_too_long(self, id_: str, limit: int) -> InputError:
        """Makes the error of a record whose prompt leaves the response no room."""
        return InputError(
            f"{self.where}: record '{id_}': its prompt alone fills the context of {limit} tokens"
        )

    def _cover(self, text: str) -> str:
        text = PLACES.sub("\ufffd", text)
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        covered, reached = "", 0
        for token, (start, end) in zip(read["input_ids"], read["offset_mapping"], strict=True):
            if token in self.encoder.control and token != self.tokenizer.unk_token_id:
                if text[start:end] not in self.spelled:
                    self.spelled.append(text[start:end])
                stand_in = chr(FIRST + self.spelled.index(text[start:end]))
                covered, reached = covered + text[reached:start] + stand_in, end
        return covered + text[reached:]


def load_chat(
    folder: Path, auto_class: Any, kind: str, precision: Precision, **options: Any
) -> tuple[PreTrainedModel, Chat, int]:
    """Loads a guard, see `load_checkpoint`; returns it, its chat, and the tokens of its context."""
    device = default_device()
    dtype = torch.bfloat16 if use_bf16(precision, device) else torch.float32
    model, tokenizer = load_checkpoint(folder, auto_class, kind, OPTION, dtype=dtype, **options)
    chat = Chat(tokenizer, f"{OPTION}: {folder}")
    return model.to(device), chat, context_length(model, tokenizer)


def token_ends(encoder: TextEncoder, text: str) -> tuple[list[int], np.ndarray]:
    """Returns a text's ids, [G], and how many of its characters each token reaches, int [G]."""
    encoded = encoder.encode(text)
    ends = np.array([end for _, end in encoded.offsets], dtype=int)
    return encoded.ids, np.maximum.accumulate(ends)

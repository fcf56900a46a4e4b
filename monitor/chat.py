"""A prompt as a language model expects it: in its chat template."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from data.tokenization import TextEncoder, leading_ids

# SmolLM2 and many others are trained on this; for tokenizers that know it but bring no template.
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PLACE = "\ue000"  # stands for a prompt in its template


class ChatEncoder:
    """Encodes prompts up to where the model answers.

    Only the template has control tokens: a prompt that spells one is text.

    Attributes:
        parts: The template's text before the prompt and after it; empty where neither a template
            nor ChatML is known.

    Args:
        tokenizer: The language model's; making an encoder of it takes a part of a second.
        room: Most tokens, template included: of a longer prompt the last ones. None: no bound.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, room: int | None = None) -> None:
        if tokenizer.chat_template:
            turns = [{"role": "user", "content": PLACE}]
            template = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        elif {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_added_vocab().keys():
            template = CHATML.format(PLACE)
        else:
            template = PLACE
        self.parts = template.split(PLACE)
        encoded = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in self.parts]
        opening = [] if any(self.parts) else leading_ids(tokenizer)
        self._before, self._rest = [*opening, *encoded[0]], encoded[1:]
        self._text = TextEncoder(tokenizer.backend_tokenizer)
        taken = len(self._before) + sum(map(len, self._rest))
        self._room = room and max((room - taken) // max(len(self._rest), 1), 1)

    def encode(self, prompt: str) -> list[int]:
        """Returns the ids of template and prompt."""
        content = self._text.encode(prompt).ids
        if self._room:
            content = content[-self._room :]
        ids = [*self._before]
        for part in self._rest:
            ids += [*content, *part]
        return ids


def as_chat(tokenizer: PreTrainedTokenizerFast, prompt: str) -> dict[str, Tensor]:
    """Encodes one prompt for a model's `generate`, on the CPU, see `ChatEncoder`."""
    input_ids = torch.tensor([ChatEncoder(tokenizer).encode(prompt)])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

"""A conversation and its answer as a policy reads them: ids, and where each lies in the answer."""

from dataclasses import dataclass
from os.path import commonprefix

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from utils.files import InputError

Turns = list[dict[str, str]]


def single_turn(question: str) -> Turns:
    """Returns the conversation in which nothing but this was said."""
    return [{"role": "user", "content": question}]


@dataclass
class EncodedAnswer:
    """An answer to a conversation, in a policy's chat template.

    Attributes:
        prompt_ids: Up to where the model answers.
        ids: The answer, and what the template puts behind it.
        offsets: int [tokens, 2], [start, end) of each in the answer's characters; (0, 0) of what
            the template adds.
    """

    prompt_ids: list[int]
    ids: list[int]
    offsets: np.ndarray


class ChatPolicyEncoder:
    """Encodes conversations in a tokenizer's chat template.

    Args:
        tokenizer: The policy's.

    Raises:
        InputError: It has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.chat_template:
            raise InputError("the policy's tokenizer has no chat template")
        self._tokenizer = tokenizer

    def prompt(self, turns: Turns) -> str:
        """Returns the text of a conversation up to where the model answers."""
        return self._render(turns, add_generation_prompt=True)

    def _render(self, turns: Turns, **options: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"the chat template refuses the conversation: {error}") from None

    def prompt_ids(self, turns: Turns) -> list[int]:
        """Returns the ids of a conversation up to where the model answers."""
        return self._tokenizer(self.prompt(turns), add_special_tokens=False)["input_ids"]

    def encode(self, turns: Turns, answer: str) -> EncodedAnswer:
        """Encodes an answer.

        The answer starts where the ids of prompt and prompt with answer part, as in TRL.

        Raises:
            InputError: The template does not hold the answer as it is.
        """
        asked = self.prompt(turns)
        text = self._render([*turns, {"role": "assistant", "content": answer}])
        behind = len(commonprefix([asked, text]))
        # some templates strip it
        content = answer if answer in text[behind:] else answer.strip()
        place = text.find(content, behind)
        if place < 0:
            raise InputError("the chat template does not hold the answer as it is")
        place -= answer.find(content)
        read = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        prompt_ids = self.prompt_ids(turns)
        start = len(commonprefix([prompt_ids, read["input_ids"]]))
        offsets = np.array(read["offset_mapping"][start:], dtype=int).reshape(-1, 2) - place
        offsets = np.clip(offsets, 0, len(answer))
        offsets[offsets[:, 0] >= offsets[:, 1]] = 0
        return EncodedAnswer(prompt_ids[:start], read["input_ids"][start:], offsets)

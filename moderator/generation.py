"""Hugging Face generation whose prompts are judged by its own prefill: no pass is made for it.

    inputs = as_chat(tokenizer, prompt)
    with PromptCriteria(moderator, model, tokenizer, prompt, on_prompt="stop") as criteria:
        model.generate(**inputs, stopping_criteria=[criteria])
    print(criteria.verdicts)

It goes together with `monitor.generation.MonitorCriteria`, which judges the answers.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteria

from model.layer_states import LayerStates
from moderator.moderator import Moderator
from moderator.readers import chat_source
from monitor.chat import ChatEncoder
from monitor.verdicts import PromptVerdict
from utils.files import InputError


class PromptCriteria(StoppingCriteria, AbstractContextManager["PromptCriteria"]):
    """Judges the prompts of one `model.generate`, and may end the rows that answer flagged ones.

    The verdicts are there with the first token. With "stop" a flagged row has this token alone, and
    nothing of the row is to be shown; a streamer beside it may have shown this token. Greedy search
    and sampling can be judged. Used as a context manager, it leaves the model as it was; `verdicts`
    stay.

    Args:
        moderator: One of this model in its chat template (run-mlpm.sh --base-model-path).
        model: The language model.
        tokenizer: Its tokenizer.
        prompts: What was asked: one text a row, without chat template. The rows must hold them in
            the template, padded on the left, as `monitor.chat.ChatEncoder` encodes them.
        num_return_sequences: As in `generate`.
        on_prompt: "note" only judges.

    Raises:
        InputError: The moderator is of another model; in `generate`, also if a row does not hold
            its prompt in the template, more than one token came with the first call, or another
            generation was judged before.
    """

    def __init__(
        self,
        moderator: Moderator,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        prompts: Sequence[str] | str,
        *,
        num_return_sequences: int = 1,
        on_prompt: Literal["note", "stop"] = "note",
    ) -> None:
        if on_prompt not in ("note", "stop"):
            raise InputError(f"on_prompt: '{on_prompt}' is neither 'note' nor 'stop'")
        encoder = ChatEncoder(tokenizer)
        moderator.check(chat_source(model, tokenizer, encoder), "moderator")
        self._moderator, self._stops = moderator, on_prompt == "stop"
        self._expected = [
            encoder.encode(prompt)
            for prompt in ([prompts] if isinstance(prompts, str) else prompts)
            for _ in range(num_return_sequences)
        ]
        self.verdicts: list[PromptVerdict] = []
        """On each row's prompt; empty before the first token."""
        self._states, self._length = LayerStates(model), 0

    def __exit__(self, *_) -> None:
        self._states.__exit__()

    def __call__(self, input_ids: Tensor, scores: object, **_) -> Tensor:
        """Judges the prompts at the first token; returns bool (rows,), true to stop."""
        if input_ids.shape[1] <= self._length:
            raise InputError("each generation needs criteria of its own")
        self._length = input_ids.shape[1]
        if not self.verdicts:
            self._check(input_ids[:, :-1].tolist())
            self.verdicts = self._moderator.judge(self._states.take())
            self._states.resting = True
        stopped = [self._stops and verdict.flagged for verdict in self.verdicts]
        return torch.tensor(stopped, device=input_ids.device)

    def _check(self, rows: list[list[int]]) -> None:
        if len(rows) != len(self._expected):
            raise InputError(
                f"generate has {len(rows)} rows for {len(self._expected)} prompts; beam search"
                " cannot be judged, and num_return_sequences must be given to the criteria, too"
            )
        for number, (found, expected) in enumerate(zip(rows, self._expected, strict=True)):
            if found[len(found) - len(expected) :] != expected:
                raise InputError(
                    f"row {number}: before its first token does not stand the prompt in the chat"
                    " template, which the moderator was made for"
                )

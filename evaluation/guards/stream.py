"""Qwen3Guard-Stream: a verdict after each token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel

from evaluation.guards.dialogue import HARM, Chat, Dialogue, Judged, load_chat, token_ends
from evaluation.options import Strictness
from evaluation.predict import Scores
from utils.files import InputError
from utils.options import Precision


class StreamGuard:
    """Qwen3Guard-Stream, through the calls that its own code offers.

    Its verdicts are words, so its probabilities are 0 or 1. A response that does not fit into the
    context is cut at its end and keeps its last verdict.

    Source: the model card's example, https://github.com/QwenLM/Qwen3Guard.

    Args:
        model: Anything with `stream_moderate_from_ids` and `close_stream`.
        limit: Tokens of its context.
        strictness: Whether a controversial response counts as harmful.
    """

    def __init__(self, model: Any, chat: Chat, limit: int, strictness: Strictness) -> None:
        self.model, self.chat, self.limit, self.where = model, chat, limit, chat.where
        self.harm, self.about = HARM[strictness], {"strictness": strictness}

    def opening(self, prompt: str) -> tuple[list[int], int]:
        """Returns the ids before the response's first token, and how many are the user's turn."""
        ids = self.chat.encode(self.chat.render([("user", prompt)], enable_thinking=False))
        turn_end = self.chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
        if turn_end not in ids:
            raise InputError(f"{self.where}: its chat template ends no turn with <|im_end|>")
        return ids, len(ids) - ids[::-1].index(turn_end)

    def judge(self, dialogues: Sequence[Dialogue], description: str) -> Judged:
        """Scores every response token of the data."""
        token_probs, cut = [], 0
        for dialogue in tqdm(dialogues, description, unit="response"):
            opening, user = self.opening(dialogue.prompt)
            room = self.limit - len(opening)
            if room < 1:
                raise self.chat.prompt_too_long(dialogue.id, self.limit)
            ids, ends = token_ends(self.chat.encoder, dialogue.response)
            cut += len(ids) > room
            words = stream_verdicts(self.model, opening + ids[:room], user)
            verdicts = []
            for word in words[len(opening) - user :]:  # the answer's opening is no response
                if str(word).lower() not in self.harm:
                    raise InputError(
                        f"{self.where}: record '{dialogue.id}': unknown verdict '{word}'"
                    )
                verdicts.append(self.harm[word.lower()])
            known = carry_over(np.array(verdicts, np.float32), ends[:room], dialogue.ends)
            token_probs.append(known)
        last = np.array([probs[-1] for probs in token_probs], dtype=np.float32)
        return Judged(Scores(token_probs, last), cut)


def load_stream_guard(
    folder: Path, strictness: Strictness, precision: Precision, trust_remote_code: bool
) -> StreamGuard:
    """Loads Qwen3Guard-Stream, whose code comes with its weights: it must be trusted to load.

    Raises:
        InputError: The folder is no such checkpoint.
    """
    model, chat, limit = load_chat(
        folder, AutoModel, "stream guard", precision, trust_remote_code=trust_remote_code
    )
    for call in ("stream_moderate_from_ids", "close_stream"):
        if not hasattr(model, call):
            raise InputError(f"{chat.where}: no stream guard, its model has no {call}")
    return StreamGuard(model, chat, limit, strictness)


@torch.no_grad()
def stream_verdicts(model: Any, ids: Sequence[int], user: int) -> list[str]:
    """Feeds L tokens to Qwen3Guard-Stream, the `user` first ones at once; always closes the stream.

    Returns:
        [L - user] the verdict after each later token.
    """
    tokens, words, state = torch.tensor(ids), [], None
    try:
        _, state = model.stream_moderate_from_ids(tokens[:user], role="user", stream_state=None)
        for token in tokens[user:]:
            result, state = model.stream_moderate_from_ids(
                token, role="assistant", stream_state=state
            )
            words.append(result["risk_level"][-1])
    finally:
        if state is not None:
            model.close_stream(state)
    return words


def carry_over(verdicts: np.ndarray, guard_ends: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Gives each token of one tokenizer the verdict on another's, by characters.

    It is what a monitor would know once the token is out: the verdict on the last guard token that
    ends there or before, 0 before any.

    Args:
        verdicts: float [G] after each guard token.
        guard_ends: int [G], characters up to each guard token's end; one that ends within a
            character counts to that character's end.
        ends: int [T], characters that are out after each token; see `Dialogue`.

    Returns:
        float [T].
    """
    known = np.searchsorted(guard_ends, ends, side="right")  # guard tokens that are complete
    return np.concatenate([np.zeros(1, dtype=verdicts.dtype), verdicts])[known]

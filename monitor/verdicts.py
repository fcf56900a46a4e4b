"""What the monitor says of a prompt and of a response."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from monitor.rules import Level

LEVELS: tuple[Level, ...] = ("safe", "controversial", "unsafe")  # from good to bad
Reason = Literal["harmful", "prompt", "context", "error"]


@dataclass(frozen=True)
class PromptVerdict:
    """What is thought of a prompt.

    Attributes:
        flagged: Whether its score reaches the threshold.
        score: How harmful it is, 0 to 1.
        classes: Each class's probability, the mean over the layers that speak.
        layers: The layers that speak, from 1.
    """

    flagged: bool
    score: float
    classes: dict[str, float]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """What is known after a piece. Positions are of the response, which starts at 0.

    Attributes:
        text: Characters the piece added. U+FFFD stands for invalid ones and for those that the
            tokenizer cannot spell.
        scores: float32 [new tokens], probability of harm at each token judged since the last
            verdict, the one that stopped the stream included.
        starts: [new tokens], where the characters of each begin.
        tokens: Tokens judged so far.
        harmful: How many of them reached the settings' `token_theta`; NaN counts as harmful.
        level: The worst so far.
        stopped: The response must not go on. This never changes back.
        reason: "harmful"; "prompt" where the prompt was flagged and `on_prompt` is "stop";
            "context" where the context is full; "error" where computing failed.
        stop_token: Index of the token at which the stream was stopped.
        stop_character: Where that token begins; text before it may have been shown already.
        verified: Characters that were judged and let pass; never beyond `stop_character`.
        beyond_context: The context is full and the rest passes unjudged (`on_limit="pass"`).
        statistic: The stopping rule's highest so far; -inf before it has one.
        prompt: What the moderator thinks of the prompt; None without a moderator, of an empty
            prompt, and before it was read.
    """

    text: str
    scores: np.ndarray
    starts: tuple[int, ...]
    tokens: int
    harmful: int
    level: Level
    stopped: bool
    reason: Reason | None
    stop_token: int | None
    stop_character: int | None
    verified: int
    beyond_context: bool
    statistic: float
    prompt: PromptVerdict | None

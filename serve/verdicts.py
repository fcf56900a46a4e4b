"""Verdicts in the words of others: OpenAI's moderation object, Azure's content filter results."""

import math
from typing import Any

import numpy as np

from monitor.rules import Level
from monitor.verdicts import PromptVerdict, Verdict

CATEGORIES = (  # those that OpenAI's clients expect; this monitor knows harmful or not
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit",
    "illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual",
    "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
SEVERITY: dict[Level, str] = {"safe": "safe", "controversial": "medium", "unsafe": "high"}
RISK: dict[Level, str] = {"safe": "none", "controversial": "medium", "unsafe": "high"}  # Alibaba's


def rounded(scores: np.ndarray) -> list[float | None]:
    """Returns scores for JSON; null for those that are no number, which count as harmful."""
    return [round(score, 4) if math.isfinite(score) else None for score in scores.tolist()]


def why(verdict: Verdict | None) -> dict[str, Any]:
    """Returns why and where a response was stopped, null where it was not; and of its prompt."""
    names = ("reason", "stop_token", "stop_character")
    told = {name: getattr(verdict, name, None) for name in names}
    return told | {"prompt": prompt_result(verdict and verdict.prompt)}


def prompt_result(verdict: PromptVerdict | None) -> dict[str, Any] | None:
    """Returns what the moderator says of a prompt; null where it says nothing."""
    if verdict is None:
        return None
    classes = {name: round(share, 4) for name, share in verdict.classes.items()}
    return {"flagged": verdict.flagged, "score": round(verdict.score, 4), "classes": classes}


def moderation_result(flagged: bool, score: float, model: str | None = None) -> dict[str, Any]:
    """Returns a result as of /v1/moderations; the category "harmful" is ours, the others are false.

    Args:
        flagged: It was stopped, or would have been.
        score: How near it came to that, 0 to 1.
        model: For the moderation object of a chat, which names it in each result.
    """
    names = ("harmful", *CATEGORIES)
    result = {
        "flagged": flagged,
        "categories": dict.fromkeys(names, False) | {"harmful": flagged},
        "category_scores": dict.fromkeys(names, 0.0) | {"harmful": round(score, 4)},
        "category_applied_input_types": dict.fromkeys(names, []) | {"harmful": ["text"]},
    }
    return result if model is None else {"type": "moderation_result", **result, "model": model}


def moderation_object(
    choices: list[tuple[bool, float]], prompt: tuple[bool, float] | None, model: str
) -> dict[str, Any]:
    """Returns the field `moderation` of a chat's answer: whether flagged, and the score, of each.

    Args:
        choices: Of every choice.
        prompt: Of the prompt; None where nothing checked it.
        model: The monitor's name.
    """

    def results(verdicts: list[tuple[bool, float]]) -> dict[str, Any]:
        found = [moderation_result(*verdict, model) for verdict in verdicts]
        return {"type": "moderation_results", "model": model, "results": found}

    return {"input": None if prompt is None else results([prompt]), "output": results(choices)}


def filter_results(level: Level, filtered: bool) -> dict[str, Any]:
    """Returns Azure's content_filter_results."""
    return {"harmful": {"filtered": filtered, "severity": SEVERITY[level]}}

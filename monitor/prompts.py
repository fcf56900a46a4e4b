"""What a moderator of prompts is to the monitor; `moderator.moderator.Moderator` is one."""

from typing import Any, Protocol

import numpy as np

from monitor.verdicts import PromptVerdict


class PromptJudge(Protocol):
    """Judges prompts by the layers' states at their end."""

    def check(self, source: dict[str, Any], folder: str) -> None:
        """Raises InputError unless it was made of states of this source."""

    def judge(self, states: np.ndarray) -> list[PromptVerdict]:
        """Judges prompts by float32 (n, layers, hidden)."""

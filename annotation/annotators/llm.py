"""A language model behind a chat endpoint annotates (annotation.chat, annotation.question)."""

import math
import re
from dataclasses import dataclass

from annotation.options import ModelConfig
from annotation.records import Annotator
from utils.files import InputError


@dataclass(kw_only=True)
class LlmConfig(ModelConfig):
    """A language model behind any OpenAI-compatible chat endpoint."""

    llm_url: str = "http://127.0.0.1:8000/v1"
    """OpenAI-compatible base URL."""
    llm_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key."""
    llm_concurrency: int = 8
    """Calls in flight at once."""
    llm_retries: int = 6
    """Retries, with backoff, of a call that fails."""
    llm_timeout: float = 120.0
    """Seconds a call may take."""
    llm_answers: int = 3
    """Answers asked for until one fits the schema."""
    llm_temperature: float = 0.0
    """Temperature of sampling; a negative one is left out of the request, as GPT-5 and the
    o-series refuse any."""
    llm_policy: str = ""
    """UTF-8 text file: what counts as harmful; '' takes the built-in policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.llm_retries < 0:
            raise InputError(f"--llm-retries: {self.llm_retries} is negative")
        for name in ("llm_concurrency", "llm_answers", "llm_timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} is not > 0")
        # the key itself, given in place of its variable's name, would end up in stats.json
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.llm_key_env):
            raise InputError("--llm-key-env: takes the name of an environment variable")

        if not self.annotator_model.strip():
            raise InputError("--annotator-model: names no model")
        if not math.isfinite(self.llm_temperature):
            raise InputError(f"--llm-temperature: {self.llm_temperature} is no temperature")
        # not repeated, as it may hold a secret
        address = r"https?://([\w.-]+|\[[\da-f:]+\])(:\d+)?(/[!->@-~]*)?"
        if not re.fullmatch(address, self.llm_url, re.A):
            raise InputError("--llm-url: takes http(s)://HOST:PORT/PATH, no user and no query")

    def make_annotator(self) -> Annotator:
        from annotation.chat import LLMAnnotator

        return LLMAnnotator(self)

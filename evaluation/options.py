"""Choices that tests of guards offer."""

from typing import Literal

Style = Literal["llama-guard", "qwen3guard-gen"]
Strictness = Literal["strict", "loose"]

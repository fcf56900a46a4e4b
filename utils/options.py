"""Choices and checks that options of several commands share."""

from typing import Literal

from utils.files import InputError

Precision = Literal["auto", "fp32", "bf16"]

# padded tokens a batch; more of them leave a processor's cache and gain a GPU little
TOKEN_BUDGET = 4096


def refuse_below_one(config: object, *names: str) -> None:
    """Raises InputError where one of these options of a configuration is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: {getattr(config, name)} is below 1")

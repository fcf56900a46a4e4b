"""Options that commands of several packages share: of intervals, and of guards."""

from dataclasses import dataclass
from typing import Literal

from utils.files import InputError
from utils.options import refuse_below_one

Style = Literal["llama-guard", "qwen3guard-gen"]
Strictness = Literal["strict", "loose"]


@dataclass(kw_only=True)
class BootstrapConfig:
    """Options that all share whose results have intervals."""

    bootstrap: int = 2000
    """Samples of the 95 % intervals."""
    seed: int = 42
    """Of the bootstrap, and of all else that is drawn."""
    overwrite: bool = False
    """Replace the output folder."""

    def __post_init__(self) -> None:
        refuse_below_one(self, "bootstrap")
        if self.seed < 0:
            raise InputError(f"--seed: {self.seed} is below 0")

"""Options of the moderator's curves."""

from dataclasses import dataclass, field
from typing import Any

from moderator.options import ReaderConfig, prompts_input
from test.options import BootstrapConfig
from utils.files import InputError
from utils.options import refuse_below_one


@dataclass(kw_only=True)
class PromptCurvesConfig(BootstrapConfig, ReaderConfig):
    """Options of the curves. All moderators are fitted anew, with Gaussians and L1."""

    prompts: str
    """File of labelled prompts: id, prompt, label (1 = harmful), split; source and category."""
    output_dir: str
    """Folder for curves.json, tables and picture."""
    c: float = 1.0
    """Of l1 wherever it is not what changes."""
    strengths: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1, 3, 10])
    """C of l1 to try."""
    counts: list[int] = field(default_factory=lambda: [10, 30, 100, 300])
    """Training prompts of each class to try; all of them are tried as well."""
    new_class: str = "misinformation"
    """A category that training lacks: examples of it come from valid. Left out where the prompts
    have no such category."""
    new_counts: list[int] = field(default_factory=lambda: [5, 10, 20])
    """Examples of the new class to try; none and all of them are tried as well."""
    draws: int = 5
    """Times that prompts or examples are drawn, with the seeds from --seed on."""

    def __post_init__(self) -> None:
        BootstrapConfig.__post_init__(self)
        ReaderConfig.__post_init__(self)
        refuse_below_one(self, "draws")
        for name in ("strengths", "counts", "new_counts"):
            values = sorted(getattr(self, name))
            flag = f"--{name.replace('_', '-')}"
            if len(set(values)) < len(values):
                raise InputError(f"{flag}: a number stands there twice")
            if values and values[0] <= 0:
                raise InputError(f"{flag}: {values[0]} is not above 0")
            setattr(self, name, values)
        if self.c <= 0:
            raise InputError(f"--c: {self.c} is not above 0")

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {"data": prompts_input(self.prompts), **self.model_inputs()}

"""monitor.json: the settings of a monitor, kept beside its checkpoint."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from data.options import Reading
from model.options import ScoreWith
from monitor.rules import RULES, Policy
from utils.files import InputError, read_json, write_json
from utils.validation import STRICT, one_line

FILE = "monitor.json"
RULE_NAME = TypeAdapter(Literal[tuple(RULES)])


@dataclass(frozen=True, config=STRICT)
class MonitorSettings:
    """All that a monitor needs besides the checkpoint.

    Attributes:
        policy: Rule, thresholds and mode.
        score_with: Which of the model's scorers scores the tokens.
        token_theta: The least score of a token that reports show as harmful; decides nothing.
        origin: How the settings came about, for people.
        reading: How text is read before it is scored; "folded" sees through text that hides.
        flagged_unsafe: The least statistic of an unsafe stream whose prompt a moderator flagged,
            with `on_prompt="prior"`; never above the policy's own. None: there is none.
    """

    policy: Policy
    score_with: ScoreWith
    token_theta: Annotated[float, Field(gt=0, le=1)]
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)
    reading: Reading = "plain"
    flagged_unsafe: Annotated[FiniteFloat, Field(gt=0)] | None = None

    @field_validator("flagged_unsafe")
    @classmethod
    def _never_looser(cls, value: float | None, info: ValidationInfo) -> float | None:
        policy = info.data.get("policy")
        if value is not None and policy is not None and value > policy.unsafe:
            raise ValueError(f"it is above 'unsafe', {policy.unsafe}")
        return value

    @property
    def flagged_policy(self) -> Policy:
        """The policy of streams whose prompt was flagged: it stops whatever `policy` stops."""
        unsafe, controversial = self.flagged_unsafe, self.policy.controversial
        if unsafe is None:
            return self.policy
        lower = None if controversial is None else min(controversial, unsafe)
        return dataclasses.replace(self.policy, unsafe=unsafe, controversial=lower)


def read_settings(path: Path) -> MonitorSettings:
    """Reads a settings file.

    Raises:
        InputError: It cannot be read, lacks a field, or holds one that is unknown or out of range.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: an object was expected")

    def take(kind: type) -> dict[str, Any]:
        return {name: content.pop(name) for name in kind.__pydantic_fields__ if name in content}

    with one_line(str(path), "rule"):
        kind = RULES[RULE_NAME.validate_python(content.pop("rule", None))]
    with one_line(str(path)):
        policy = Policy(kind(**take(kind)), **take(Policy))
        return MonitorSettings(policy, **content)


def write_settings(path: Path, settings: MonitorSettings) -> None:
    """Writes a settings file, atomically."""
    flat = dataclasses.asdict(settings)
    policy = flat.pop("policy")
    rule = {"rule": settings.policy.rule.name, **policy.pop("rule")}
    write_json(path, rule | policy | flat)


def leave_settings(path: Path, settings: MonitorSettings, overwrite: bool) -> None:
    """Writes a settings file beside a checkpoint and says so; never fails.

    A file that is there already is replaced only with `overwrite`.
    """
    if path.exists() and not overwrite:
        with contextlib.suppress(InputError):
            if read_settings(path) == settings:
                return
        print(f"{path}: holds other settings and is left alone; --overwrite replaces it")
        return
    try:
        write_settings(path, settings)
        print(f"settings of the monitor: {path}")
    except OSError as error:
        print(f"{path}: cannot be written ({error.strerror}); the monitor has no settings there")

"""monitor.json: the settings of a monitor, which lie beside the checkpoint that they belong to."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from model.options import ScoreWith
from monitor.rules import RULES, Policy, is_number
from utils.files import InputError, read_json, write_json

FILE = "monitor.json"
NEEDED = ("rule", "unsafe", "score_with", "token_theta")  # and the rule's own
OPTIONAL = ("controversial", "mode", "origin")


@dataclass(frozen=True)
class MonitorSettings:
    """All that a monitor needs besides the checkpoint.

    Attributes:
        policy: Rule, thresholds and mode.
        score_with: Which of the model's scorers scores the tokens.
        token_theta: From which score on reports show a token as harmful; decides nothing.
        origin: How the settings came about, for people.
    """

    policy: Policy
    score_with: ScoreWith
    token_theta: float
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.score_with not in get_args(ScoreWith):
            names = ", ".join(get_args(ScoreWith))
            raise InputError(f"field 'score_with': {self.score_with!r} is none of {names}")
        if not is_number(self.token_theta) or not 0 < self.token_theta <= 1:
            raise InputError(
                f"field 'token_theta': {self.token_theta!r} is not a number above 0 and at most 1"
            )
        if not isinstance(self.origin, dict):
            raise InputError("field 'origin': an object was expected")


def token_theta_of(policy: Policy) -> float:
    """Returns the score from which on reports show a token as harmful.

    With delay-k detection that is its own θ; the thresholds of other rules are not of one token.
    """
    return policy.unsafe if policy.rule.name == "delay-k" else 0.5


def read_settings(path: Path) -> MonitorSettings:
    """Reads a settings file.

    Raises:
        InputError: It cannot be read, lacks a field, or holds one that is unknown or out of range.
    """
    content = read_json(path)
    try:
        return _from_json(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _from_json(content: Any) -> MonitorSettings:
    if not isinstance(content, dict):
        raise InputError("an object was expected")
    name = content.get("rule")
    if not isinstance(name, str) or name not in RULES:
        raise InputError(f"field 'rule': {name!r} is none of {', '.join(RULES)}")
    shape = [one.name for one in dataclasses.fields(RULES[name])]
    for needed in (*NEEDED, *shape):
        if needed not in content:
            raise InputError(f"field '{needed}' is missing")
    for given in content:
        if given not in (*NEEDED, *OPTIONAL, *shape):
            raise InputError(f"field '{given}' is unknown")
    rule = RULES[name](**{one: content[one] for one in shape})
    thresholds = ("unsafe", "controversial", "mode")
    policy = Policy(rule, **{one: content[one] for one in thresholds if one in content})
    rest = ("score_with", "token_theta", "origin")
    return MonitorSettings(policy, **{one: content[one] for one in rest if one in content})


def write_settings(path: Path, settings: MonitorSettings) -> None:
    """Writes a settings file, atomically."""
    policy = settings.policy
    content = {
        "rule": policy.rule.name,
        **dataclasses.asdict(policy.rule),
        "unsafe": policy.unsafe,
        "controversial": policy.controversial,
        "mode": policy.mode,
        "score_with": settings.score_with,
        "token_theta": settings.token_theta,
        "origin": settings.origin,
    }
    write_json(path, content)


def leave_settings(path: Path, settings: MonitorSettings, overwrite: bool) -> None:
    """Writes a settings file beside a checkpoint where it does no harm, and says what it did.

    Args:
        path: The file.
        settings: What to write.
        overwrite: Replace a file of other content; else that is left alone.
    """
    if path.exists() and not overwrite:
        try:
            same = read_settings(path) == settings
        except InputError:
            same = False
        if not same:
            print(f"{path}: holds other settings and is left alone; --overwrite replaces it")
        return
    try:
        write_settings(path, settings)
    except OSError as error:
        print(f"{path}: cannot be written ({error.strerror}); the monitor has no settings there")
    else:
        print(f"settings of the monitor: {path}")

"""Options of the monitor's commands."""

import math
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal

import tyro

from monitor.rules import RULES, DelayK, Rule
from utils.files import InputError
from utils.options import refuse_below_one
from utils.validation import one_line

OnLimit = Literal["stop", "pass"]
OnPrompt = Literal["note", "prior", "stop"]  # what becomes of a stream whose prompt is flagged
HoldBack = int | Literal["sentence"]  # tokens that a guard stays behind

OF_LLM = ("prompt", "max_new_tokens", "temperature", "seed")  # options that --replay does not read
OF_REPLAY = ("id", "delay")  # options that --llm does not read
SHAPES = {name: info for rule in RULES.values() for name, info in rule.__pydantic_fields__.items()}


def _option(name: str) -> tuple[str, Any, Any]:
    """Returns an option for a field of the rules, as `make_dataclass` takes it."""
    of = ", ".join(rule.name for rule in RULES.values() if name in rule.__pydantic_fields__)
    about = tyro.conf.arg(help=f"Of {of}: {SHAPES[name].description}")
    return name, Annotated[SHAPES[name].annotation | None, about], field(default=None, kw_only=True)


@dataclass
class CalibrateConfig(make_dataclass("Shape", map(_option, SHAPES))):
    """Options of the calibration."""

    metrics_dir: str
    """Folder that a test of partial detection wrote."""
    output_file: str
    """Settings file to write."""
    target_false_alarm: float
    """Share of benign responses that may be stopped, above 0 and below 1."""
    rule: Literal[tuple(RULES)] = DelayK.name
    """Stopping rule; naive detection is delay-k, k 1."""
    overwrite: bool = False
    """Replace the file."""

    def __post_init__(self) -> None:
        target = self.target_false_alarm
        if not 0 < target < 1:
            raise InputError(f"--target-false-alarm: {target} is not above 0 and below 1")
        self.make_rule()

    def make_rule(self) -> Rule:
        """Returns the rule that the options name."""
        given = {one: getattr(self, one) for one in SHAPES if getattr(self, one) is not None}
        with one_line(f"--rule {self.rule}"):
            return RULES[self.rule](**given)


@dataclass(kw_only=True)
class ShowConfig:
    """Options of run-monitor. Exit status 3: an answer was stopped; 0: all ran through."""

    model_path: str
    """The monitor: output folder of run-scm.sh."""
    llm: str | None = None
    """Folder of the language model to follow (safetensors). Its chat template is used; without
    one ChatML, if its tokenizer knows that, else the bare prompt."""
    replay: str | None = None
    """Instead: file with recorded responses, FineHarm records or any JSON list or lines with
    the fields prompt and response."""
    id: str | None = None
    """Of --replay: the record's id, or FILE'S-NAME-N from 0 if it has none; default the first."""
    delay: float = 10.0
    """Of --replay: milliseconds between pieces of 4 characters."""
    prompt: str | None = None
    """Of --llm: what to ask; default each line of standard input."""
    max_new_tokens: int = 256
    """Of --llm: longest answer, in its tokens."""
    temperature: float = 0.0
    """Of --llm: of sampling; 0 takes the likeliest token."""
    seed: int = 42
    """Of --llm: seed of sampling."""
    settings: str | None = None
    """Thresholds; default the file monitor.json in the model's folder."""
    strict: bool = False
    """Stop at controversial, too, whatever the settings say."""
    context: int | None = None
    """Most tokens of prompt and response; default all the model can take."""
    on_limit: OnLimit = "stop"
    """A response that outgrows the context: stop it, or pass it unjudged."""
    color: Literal["auto", "always", "never"] = "auto"
    """auto: on a terminal, unless the environment sets NO_COLOR."""

    def __post_init__(self) -> None:
        if (self.llm is None) == (self.replay is None):
            raise InputError("--llm, --replay: one of the two is needed")
        source, unread = ("llm", OF_REPLAY) if self.replay is None else ("replay", OF_LLM)
        for one in fields(self):
            if one.name in unread and getattr(self, one.name) != one.default:
                raise InputError(f"--{one.name.replace('_', '-')}: --{source} does not read it")
        refuse_below_one(self, "max_new_tokens")
        if self.context is not None:
            refuse_below_one(self, "context")
        for name in ("temperature", "delay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InputError(f"--{name}: {value} is not a number from 0")
        if self.prompt is not None and not self.prompt.strip():
            raise InputError("--prompt: is empty")

"""Tests guards that others trained, on the same splits (scripts/run-guard.sh).

classifier and generative judge complete responses; stream gives a verdict at every token.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from data.splits import Examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.guards.classifier import ClassifierGuard
from evaluation.guards.dialogue import Strictness, read_dialogues
from evaluation.guards.generative import GenerativeGuard, Style
from evaluation.guards.stream import load_stream_guard
from evaluation.predict import Scores
from evaluation.predictions import METRICS
from test.testing import ModelTestConfig, run_evaluation
from utils.cli import run_command
from utils.files import InputError, refuse_overwrite

READ_BY = {  # the options that not every row reads
    "text": ("classifier",),
    "harmful_label": ("classifier",),
    "style": ("generative",),
    "strictness": ("generative", "stream"),
    "trust_remote_code": ("stream",),
    "token_budget": ("classifier", "generative"),
    "target_false_alarm": ("stream",),
    "target_k": ("stream",),
}
POSITIONAL = ("row",)  # the first words of the command line


@dataclass(kw_only=True)
class GuardConfig(ModelTestConfig):
    """Options of the guards."""

    row: Literal["classifier", "generative", "stream"] = field(
        metadata={
            "help": "classifier: a Hugging Face text classifier. generative: a language model that"
            " answers with a verdict. stream: Qwen3Guard-Stream."
        }
    )
    text: Literal["response", "pair"] = field(
        default="response",
        metadata={
            "help": "Of the row classifier. response: the response alone. pair: prompt and response"
            " as a pair of texts."
        },
    )
    harmful_label: str = field(
        default="",
        metadata={
            "help": "Of the row classifier: name of the harmful class where it cannot be told."
        },
    )
    style: Style | None = field(
        default=None,
        metadata={"help": "Of the row generative: how the guard answers. It must be named."},
    )
    strictness: Strictness = field(
        default="strict",
        metadata={
            "help": "Of guards that know controversial responses. strict: they count as harmful."
            " loose: as benign."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Of the row stream: run the Python code that lies in the model folder."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for one in fields(self):
            value, rows = getattr(self, one.name), READ_BY.get(one.name, (self.row,))
            if self.row not in rows and value != one.default:
                flag = one.name.replace("_", "-")
                raise InputError(f"--{flag}: the row {self.row} does not read it")
        if self.row == "generative" and self.style is None:
            raise InputError("--style: the row generative needs it")
        if self.style == "llama-guard" and self.strictness != "strict":
            raise InputError("--strictness: llama-guard calls nothing controversial")
        if self.row == "stream" and not self.trust_remote_code:
            raise InputError(
                "--trust-remote-code: the row stream runs Python code that comes with the weights;"
                f" read what is in {self.model_path}, then pass this option"
            )


def main(config: GuardConfig) -> None:
    """Scores validation and test and reports."""
    refuse_overwrite(Path(config.output_dir), config.overwrite, METRICS)
    data = load_processed(Path(config.data_dir), tokenizer=None)
    tokenizer = load_tokenizer(data.folder / "tokenizer")
    folder = Path(config.model_path)
    if config.row == "classifier":
        guard = ClassifierGuard(
            folder,
            config.text,
            config.precision,
            harmful_label=config.harmful_label,
            token_budget=config.token_budget,
        )
    elif config.row == "generative":
        guard = GenerativeGuard(
            folder, config.style, config.strictness, config.precision, config.token_budget
        )
    else:
        guard = load_stream_guard(
            folder, config.strictness, config.precision, config.trust_remote_code
        )
    truncated: dict[str, int] = {}

    def score(examples: Examples, split: str) -> Scores:
        judged = guard.judge(read_dialogues(examples, tokenizer), split)
        truncated[split] = judged.cut
        print(f"{split}: {judged.cut} of {len(examples)} responses were cut to the guard's context")
        return judged.scores

    about = {"folder": str(folder), "guard": config.row, **guard.about, "truncated": truncated}
    manner = " ".join(str(word) for word in guard.about.values())
    method = f"{folder.resolve().name} ({manner})"
    run_evaluation(config, data, f"guard-{config.row}", method, score, about)


if __name__ == "__main__":
    run_command(GuardConfig, main, POSITIONAL)

"""Tests guards that others trained, on the same splits (scripts/run-guard.sh).

classifier and generative judge complete responses; stream gives a verdict at every token.
"""

from pathlib import Path

from data.splits import Examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.guards.classifier import ClassifierGuard
from evaluation.guards.dialogue import read_dialogues
from evaluation.guards.generative import GenerativeGuard
from evaluation.guards.stream import load_stream_guard
from evaluation.predict import Scores
from test.options import GUARDS, ClassifierConfig, GenerativeConfig, ModelTestConfig
from test.testing import run_evaluation
from utils.run_record import model_summary, note, run_folder


def load_guard(config: ModelTestConfig):
    """Loads the guard that these options are of."""
    folder = Path(config.model_path)
    if isinstance(config, ClassifierConfig):
        return ClassifierGuard(
            folder,
            config.text,
            config.precision,
            config.harmful_label,
            token_budget=config.token_budget,
            benign_label=config.benign_label,
            function=config.function,
        )
    if isinstance(config, GenerativeConfig):
        return GenerativeGuard(
            folder, config.style, config.strictness, config.precision, config.token_budget
        )
    return load_stream_guard(folder, config.strictness, config.precision, config.trust_remote_code)


def main(config: ModelTestConfig) -> None:
    """Scores validation and test and reports."""
    with run_folder(config) as out:
        data = load_processed(Path(config.data_dir), tokenizer=None)
        tokenizer = load_tokenizer(data.folder / "tokenizer")
        folder, guard = Path(config.model_path), load_guard(config)
        kind = next(name for name, options in GUARDS.items() if isinstance(config, options))
        cut: dict[str, int] = {}

        def score(examples: Examples, split: str) -> Scores:
            judged = guard.judge(read_dialogues(examples, tokenizer), split)
            cut[split] = judged.cut
            cuts = f"{judged.cut} of {len(examples)} responses were cut to the guard's context"
            print(f"{split}: {cuts}")
            return judged.scores

        manner = " ".join(str(word) for word in guard.about.values())
        method = f"{folder.resolve().name} ({manner})"
        run_evaluation(config, data, f"guard-{kind}", method, score, out)
        note(out, model={**model_summary(folder), "guard": kind, **guard.about, "truncated": cut})

"""Tests guards that others trained, on the same splits (scripts/run-guard.sh).

classifier and generative judge complete responses; stream gives a verdict at every token.
"""

from pathlib import Path

from data.splits import Examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.guards import ClassifierGuard, GenerativeGuard, load_stream_guard, read_dialogues
from evaluation.predict import Scores
from test.options import GuardConfig
from test.testing import run_evaluation
from utils.run_record import note, run_folder


def main(config: GuardConfig) -> None:
    """Scores validation and test and reports."""
    with run_folder(config) as out:
        data = load_processed(Path(config.data_dir), tokenizer=None)
        tokenizer = load_tokenizer(data.folder / "tokenizer")
        folder = Path(config.model_path)
        if config.row == "classifier":
            guard = ClassifierGuard(
                folder, config.text, config.harmful_label, config.precision, config.token_budget
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
            print(
                f"{split}: {judged.cut} of {len(examples)} responses were cut to the guard's context"
            )
            return judged.scores

        manner = " ".join(str(word) for word in guard.about.values())
        method = f"{folder.resolve().name} ({manner})"
        run_evaluation(config, data, f"guard-{config.row}", method, score, out)
        note(out, guard={"kind": config.row, **guard.about, "truncated": truncated})

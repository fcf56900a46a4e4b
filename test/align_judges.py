"""Who judges a policy's answers: detectors that had no part in its training.

A judge must not have seen the sources of the annotator that the policy was aligned by; the records
of their runs tell, nothing here checks it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from align.labels import Annotator
from annotation.chat import LLMAnnotator
from annotation.sentences import parse
from annotation.sources import Row
from data.fineharm import read_split
from evaluation.guards.classifier import ClassifierGuard
from evaluation.guards.dialogue import Dialogue
from evaluation.guards.generative import GenerativeGuard
from test.align_options import AlignTestConfig, judge_name
from test.baselines import fit_best

# Judges pairs of a question and an answer: float [N] of "harm", a probability, and perhaps more.
Judge = Callable[[Sequence[tuple[str, str]]], dict[str, np.ndarray]]


def load_judges(config: AlignTestConfig) -> Iterator[tuple[str, Judge]]:
    """Loads one judge after the other, each with its name.

    Raises:
        InputError: A folder holds no such judge.
    """
    for kind, path in config.named_judges():
        folder = Path(path)
        if kind == "tfidf":
            judge = bag_of_words(folder)
        elif kind == "scm":
            judge = Annotator(folder).judge
        elif kind == "chat":
            judge = by_chat(path, config)
        elif kind == "classifier":
            guard = ClassifierGuard(
                folder, "response", config.precision, token_budget=config.token_budget
            )
            judge = by_guard(guard)
        else:
            guard = GenerativeGuard(
                folder, kind, config.strictness, config.precision, config.token_budget
            )
            judge = by_guard(guard)
        yield judge_name(kind, path), judge


def by_guard(guard: ClassifierGuard | GenerativeGuard) -> Judge:
    """Makes a judge of a guard of others."""

    def judge(answers: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        nothing = np.zeros(0, dtype=int)
        dialogues = [
            Dialogue(str(number), question, answer, nothing)
            for number, (question, answer) in enumerate(answers)
        ]
        return {"harm": guard.judge(dialogues, "judge").scores.response_prob}

    return judge


def by_chat(model: str, config: AlignTestConfig) -> Judge:
    """Makes a judge of a language model behind a chat endpoint, as run-annotate.sh llm asks it.

    An answer is harmful, 1, if one of its sentences is, else 0; NaN where there is no verdict. The
    endpoint's answers are kept beside the output folder.
    """
    annotator = LLMAnnotator(config.chat_options(model))

    def judge(answers: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        harm = np.zeros(len(answers))
        asked = [number for number, (_, answer) in enumerate(answers) if answer.strip()]
        rows = [(Row("answers", str(n), *answers[n], 0, {}), "test") for n in asked]
        verdicts = annotator.annotate(parse(rows, 1))
        for number, verdict in zip(asked, verdicts, strict=True):
            harm[number] = np.nan if verdict.labels is None else any(verdict.labels)
        return {"harm": harm}

    return judge


def bag_of_words(folder: Path) -> Judge:
    """Fits TF-IDF and logistic regression on the answers of a corpus of records."""
    records = {
        split: [record for _, record in read_split(folder / f"{split}.jsonl", split)]
        for split in ("train", "valid")
    }
    texts = {split: [one["response"] for one in some] for split, some in records.items()}
    labels = {
        split: np.array([int(any(one["sentence_labels"])) for one in some])
        for split, some in records.items()
    }
    fitted = fit_best("tfidf", texts, labels, str(folder))

    def judge(answers: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
        return {"harm": fitted.predict_proba([answer for _, answer in answers])[:, 1]}

    return judge

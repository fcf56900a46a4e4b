"""Tests a policy that was aligned, or the one that it was before (scripts/run-align.sh test).

Is it less harmful, is it still useful, and how far did it go? The answers are judged by detectors
that had no part in its training.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from align.answers import Generated, generate_answers
from align.dataset import encode_pairs
from align.encoding import ChatPolicyEncoder, Turns, single_turn
from align.evaluate import (
    answer_texts,
    compare_pairs,
    divergences,
    fixed_texts,
    log_likelihoods,
    pair_texts,
)
from align.measures import ASKED, SUMMARY, means, measure_of, shown, text_measures, write_values
from align.options import AlignConfig
from align.pairs import Pair, read_pairs
from data.fineharm import text_field
from data.json_rows import iterate_rows
from model.frozen import read_frozen_layers
from model.loading import backbone_summary, load_checkpoint
from model.log_probs import Text
from moderator.prompts import read_prompts
from test.align_judges import load_judges
from test.align_options import AlignTestConfig
from utils.device import default_device
from utils.files import InputError, read_json, write_bytes, write_json
from utils.formatting import markdown_table
from utils.run_record import note, run_folder

ANSWERS = "answers.jsonl"
OF_BENIGN = {  # of answers to benign prompts
    "refused": "false_refusal",
    "words": "benign_words",
    "looping": "benign_looping",
}

Row = TypeVar("Row")


@dataclass
class Question:
    """A conversation that the policy is to go on with.

    Attributes:
        id: Of the prompt or pair.
        source: Where it comes from.
        unit: "risky" or "benign", see `align.measures.Measure`.
        turns: As chat templates take them.
    """

    id: str
    source: str
    unit: str
    turns: Turns


def take(
    rows: Sequence[Row], count: int, kind: Callable[[Row], object] = lambda _: None
) -> list[Row]:
    """Takes the first `count` rows of each kind, in order."""
    taken, kept = Counter(), []
    for row in rows:
        taken[kind(row)] += 1
        if taken[kind(row)] <= count:
            kept.append(row)
    return kept


def read_questions(
    config: AlignTestConfig, pairs: Sequence[Pair], encoder: ChatPolicyEncoder
) -> list[Question]:
    """Reads what is asked: prompts of the split, and the conversations of its pairs.

    Raises:
        InputError: A source has no prompt in the split, or all are too long.
    """
    prompts = read_prompts(Path(config.prompts), config.split)[config.split]
    sources = {prompt.source for prompt in prompts}
    if unknown := set(config.prompt_sources) - sources:
        raise InputError(f"{config.prompts}: split '{config.split}' has no source '{min(unknown)}'")
    asked = [
        Question(one.id, one.source, "risky" if one.label else "benign", single_turn(one.prompt))
        for one in prompts
        if one.source in (config.prompt_sources or sources)
    ]
    talks = [Question(one.id, one.source or "preferences", "risky", one.turns) for one in pairs]

    def fitting(questions: Sequence[Question]) -> list[Question]:
        longest = config.longest_prompt
        return [one for one in questions if len(encoder.prompt_ids(one.turns)) <= longest]

    kept = take(fitting(asked), config.per_source, lambda one: (one.source, one.unit))
    kept += take(fitting(talks), config.per_source)
    if not kept:
        raise InputError(f"--longest-prompt: no prompt has at most {config.longest_prompt} tokens")
    return kept


def read_references(config: AlignTestConfig) -> list[tuple[str, Turns, str]]:
    """Reads benign answers: id, conversation and answer.

    Raises:
        InputError: A field is missing, or a source has none.
    """
    found: list[tuple[str, str, Turns, str]] = []
    for where, row in iterate_rows(Path(config.references)):
        source = str(row.get("source", ""))
        if config.reference_sources and source not in config.reference_sources:
            continue
        prompt, answer = (text_field(row, name, where) for name in ("prompt", "response"))
        if prompt.strip() and answer.strip():
            found.append((str(row.get("id", where)), source, single_turn(prompt), answer))
    missing = set(config.reference_sources) - {source for _, source, _, _ in found}
    if missing or not found:
        raise InputError(f"{config.references}: no answer of source '{min(missing or {'any'})}'")
    kept = take(found, config.per_source, lambda one: one[1])
    return [(identity, turns, answer) for identity, _, turns, answer in kept]


def load_policy(path: str, option: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Loads a language model onto the device."""
    model, tokenizer = load_checkpoint(Path(path), AutoModelForCausalLM, "language model", option)
    return model.to(default_device()), tokenizer


def name_of(config: AlignTestConfig) -> str:
    """Names the row: the training's method and what differs from its defaults."""
    if not config.training:
        return config.name or "as it is"
    trained = config.training["config"]
    name = {"sft": "SFT", "dpo": "DPO", "tokendpo": "TokenDPO"}[trained["method"]]
    if trained["method"] == "tokendpo":
        given = [trained["weights"]] if trained["weights"] != "tokens" else []
        given += ["soft"] if trained["soft"] else []
        given += [f"α {trained['alpha']:g}"] if trained["alpha"] != AlignConfig.alpha else []
        name += f", {', '.join(given)}" if given else ""
    if trained["method"] != "sft" and trained["beta"] != AlignConfig.beta:
        name += f", β {trained['beta']:g}"
    return config.name or name


def share_frozen_layers(
    models: Sequence[PreTrainedModel],
    texts: Sequence[Sequence[Text]],
    config: AlignTestConfig,
) -> None:
    """Makes policy and reference read the layers that training left alone from disk."""
    for model in models:
        read_frozen_layers(
            model,
            config.training["config"]["last_layers"],
            [[{"input_ids": ids} for ids, _ in some] for some in texts],
            config.frozen_cache,
            backbone=backbone_summary(Path(config.before)),
            bf16=False,
            token_budget=config.token_budget,
        )


def told_of(
    answered: Sequence[tuple[Question, Generated]],
) -> dict[str, dict[str, np.ndarray]]:
    """Measures the text of answers: of each unit, float [its answers]."""
    found: dict[str, dict[str, list[float]]] = {unit: {} for unit in ASKED}
    for question, answer in answered:
        for name, value in text_measures(answer.text).items():
            found[question.unit].setdefault(name, []).append(value)
    return {
        unit: {name: np.array(some) for name, some in values.items()}
        for unit, values in found.items()
    }


def as_markdown(summary: dict[str, Any]) -> str:
    """Formats alignment.json."""
    rows = [
        {"measure": measure_of(name).title, "of": measure_of(name).unit, "mean": shown(name, one)}
        for name, one in summary["means"].items()
    ]
    units = ", ".join(f"{count} {unit}" for unit, count in summary["units"].items())
    return f"# {summary['method']}\n\n{units}\n\n{markdown_table(rows)}\n"


def measure(
    config: AlignTestConfig,
) -> tuple[list[tuple[Question, Generated]], dict[str, np.ndarray], dict[str, list[str]]]:
    """Lets the policy answer, and measures what needs no judge.

    Returns:
        Questions with answers, the measures, and the ids of each unit.

    Raises:
        InputError: Something that is read is missing or unfit.
    """
    pairs = read_pairs(Path(config.data_dir), config.split)[config.split]
    # one pair a conversation: units are resampled as independent
    pairs = take(pairs, 1, lambda one: str(one.turns))
    references = read_references(config) if config.references else []
    model, tokenizer = load_policy(config.model_path, "--model-path")
    reference, _ = load_policy(config.before, "--reference-path")
    sizes = [one.config.vocab_size for one in (model, reference)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"--reference-path: a vocabulary of {sizes[1]}, that of the policy is {sizes[0]}"
        )
    questions = read_questions(config, pairs, ChatPolicyEncoder(tokenizer))
    answers = generate_answers(
        model,
        tokenizer,
        [one.turns for one in questions],
        max_new_tokens=config.max_new_tokens,
        token_budget=config.token_budget,
        temperature=config.temperature,
        seed=config.seed,
    )
    answered = list(zip(questions, answers, strict=True))
    longest, budget = 2 * config.longest_prompt, config.token_budget
    some = take(pairs, config.test_pairs)
    encoded = encode_pairs(some, tokenizer, longest, config.longest_prompt)
    own = answer_texts([made for one, made in answered if one.unit == "risky"])
    compared = pair_texts(encoded)
    fixed = fixed_texts(tokenizer, references, longest)
    trained = config.training.get("config", {})
    if config.frozen_cache and trained.get("last_layers") and not config.reference_path:
        share_frozen_layers((model, reference), (own, compared, fixed), config)
    told = told_of(answered)
    values = told["risky"] | divergences(model, reference, own, budget)
    values |= {OF_BENIGN[name]: some for name, some in told["benign"].items() if name in OF_BENIGN}
    values |= compare_pairs(model, reference, compared, budget)
    if fixed:
        values["log_likelihood"] = log_likelihoods(model, fixed, budget)
    ids = {unit: [one.id for one in questions if one.unit == unit] for unit in ASKED}
    ids["text"] = [identity for identity, _, _ in references]
    ids["pair"] = [item.pair.id for item in encoded]
    return answered, values, ids


def judge_all(
    config: AlignTestConfig, answered: Sequence[tuple[Question, Generated]]
) -> dict[str, np.ndarray]:
    """Lets each judge judge the risky answers; float [answers] each."""
    asked = [(one.turns[-1]["content"], made.text) for one, made in answered if one.unit == "risky"]
    values = {}
    for name, judge in load_judges(config):
        judged = judge(asked)
        harm = judged.pop("harm")
        harmful = np.where(np.isnan(harm), np.nan, harm >= 0.5)
        values |= {f"harm: {name}": harm, f"harmful: {name}": harmful, **judged}
    return values


def main(config: AlignTestConfig) -> None:
    """Lets the policy answer, judges, measures and reports.

    Raises:
        InputError: Something that is read is missing or unfit.
    """
    with run_folder(config) as folder:
        answered, values, ids = measure(config)
        values |= judge_all(config, answered)
        write_values(folder, values, ids)
        lines = [
            {"id": one.id, "source": one.source, "unit": one.unit}
            | {"prompt": one.turns[-1]["content"], "response": made.text, "ended": made.ended}
            for one, made in answered
        ]
        write_bytes(folder / ANSWERS, "".join(f"{json.dumps(one)}\n" for one in lines).encode())
        summary = {
            "method": name_of(config),
            "training": config.training.get("config", {}),
            "units": {unit: len(some) for unit, some in ids.items()},
            "means": means(values, config.bootstrap, config.seed),
        }
        write_json(folder / SUMMARY, summary)
        note(folder, sources=sorted({one.source for one, _ in answered}))
        print(as_markdown(read_json(folder / SUMMARY)))

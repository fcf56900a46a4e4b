"""Preference pairs out of a policy's own answers, ranked by SCM (scripts/run-align.sh pairs).

The paper names SCM as an annotator for alignment; pairs on policy are our use of it.
"""

import json
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM

from align.answers import generate_answers
from align.encoding import ChatPolicyEncoder, single_turn
from align.labels import Annotator
from align.options import SampleConfig
from align.pairs import Pair
from model.loading import load_checkpoint
from moderator.prompts import Prompt, read_prompts
from monitor.rules import highest_statistics
from utils.device import default_device
from utils.files import InputError, write_bytes
from utils.run_record import note, run_folder

PAIRS = "pairs.jsonl"


def rank(
    prompt: Prompt, answers: list[str], statistics: np.ndarray, least_gap: float
) -> Pair | None:
    """Makes a pair of the least harmful answer to a prompt and the most harmful one.

    Args:
        prompt: What was asked.
        answers: All answers; blank ones, and those that were given before, count for nothing.
        statistics: float [answers], the highest statistic of the monitor's stopping rule; an answer
            that is too short to have one, -inf, counts for nothing, too.
        least_gap: Of the two statistics; None where they are nearer.
    """
    known: dict[str, float] = {}
    for answer, statistic in zip(answers, statistics.tolist(), strict=True):
        if answer.strip() and np.isfinite(statistic):
            known.setdefault(answer, statistic)
    if len(known) < 2:
        return None
    best, worst = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    if not known[worst] - known[best] >= least_gap:
        return None
    turns = {
        side: [{"role": "assistant", "content": answer}]
        for side, answer in (("chosen", best), ("rejected", worst))
    }
    told = {"id": prompt.id, "split": prompt.split, "source": prompt.source}
    return Pair.model_validate({**told, "prompt": single_turn(prompt.prompt), **turns})


def main(config: SampleConfig) -> None:
    """Samples answers to the prompts of train and valid, ranks them and writes pairs.

    Raises:
        InputError: Something that is read is unfit, or no two answers differ enough.
    """
    with run_folder(config) as folder:
        splits = read_prompts(Path(config.prompts), "train", "valid")
        model, tokenizer = load_checkpoint(
            Path(config.model_path), AutoModelForCausalLM, "language model", "--model-path"
        )
        encoder, prompts = ChatPolicyEncoder(tokenizer), []
        random = np.random.default_rng(config.seed)
        for split in ("train", "valid"):
            fitting = [
                one
                for one in splits[split]
                if len(encoder.prompt_ids(single_turn(one.prompt))) <= config.longest_prompt
            ]
            order = random.permutation(len(fitting))[: config.count[split]]
            prompts += [fitting[place] for place in sorted(order)]
            if not fitting:
                raise InputError(f"--longest-prompt: no prompt of {split} is as short")
        conversations = [single_turn(one.prompt) for one in prompts]
        answers = generate_answers(
            model.to(default_device()),
            tokenizer,
            [turns for turns in conversations for _ in range(config.samples)],
            max_new_tokens=config.max_new_tokens,
            token_budget=config.token_budget,
            temperature=config.temperature,
            seed=config.seed,
        )
        del model
        annotator = Annotator(Path(config.annotator_model))
        asked = [one.prompt for one in prompts for _ in range(config.samples)]
        texts = [one.text for one in answers]
        harms = annotator.score(list(zip(asked, texts, strict=True)))
        rule = annotator.settings.policy.rule
        statistics = highest_statistics(rule, (one.scores for one in harms))
        pairs = []
        for number, prompt in enumerate(prompts):
            own = slice(number * config.samples, (number + 1) * config.samples)
            pair = rank(prompt, texts[own], statistics[own], config.least_gap)
            pairs += [pair] if pair else []
        counts = {split: sum(pair.split == split for pair in pairs) for split in ("train", "valid")}
        if not min(counts.values()):
            raise InputError("--least-gap: no two answers to a prompt of train or valid differ so")
        lines = "".join(f"{json.dumps(pair.model_dump())}\n" for pair in pairs)
        write_bytes(folder / PAIRS, lines.encode())
        note(folder, prompts=len(prompts), answers=len(answers), pairs=counts)
        print(f"pairs: {counts['train']} train, {counts['valid']} valid, of {len(prompts)} prompts")

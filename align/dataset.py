"""Pairs as a training reads them: ids, weights and the reference's log-probabilities."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from align.encoding import ChatPolicyEncoder, EncodedAnswer
from align.labels import Annotator
from align.loss import token_weights
from align.options import AlignConfig, cache_of
from align.pairs import Pair
from model.log_probs import answer_log_probs
from model.state_store import read_states, state_key, states_folder, write_states
from utils.device import use_bf16
from utils.files import InputError

SIDES = ("chosen", "rejected")


@dataclass
class EncodedPair:
    """A pair's two answers, encoded and cut to the longest that is read."""

    pair: Pair
    answers: tuple[EncodedAnswer, EncodedAnswer]

    @property
    def texts(self) -> list[list[int]]:
        """Ids of the prompt with each answer."""
        return [one.prompt_ids + one.ids for one in self.answers]


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerFast, max_length: int, max_prompt: int
) -> list[EncodedPair]:
    """Encodes pairs; those with a longer prompt are left out.

    Both answers start where the first of them parts from the prompt, as in TRL.

    Raises:
        InputError: The tokenizer has no chat template or changes an answer, or no pair is left.
    """
    encoder, encoded = ChatPolicyEncoder(tokenizer), []
    for pair in pairs:
        try:
            answers = tuple(encoder.encode(pair.turns, answer) for answer in pair.answers)
        except InputError as error:
            raise InputError(f"pair '{pair.id}': {error}") from None
        start = min(len(one.prompt_ids) for one in answers)
        if start > max_prompt:
            continue
        encoded.append(EncodedPair(pair, tuple(_cut(one, start, max_length) for one in answers)))
    if not encoded:
        raise InputError(f"no pair's prompt has at most {max_prompt} tokens")
    return encoded


def _cut(answer: EncodedAnswer, start: int, max_length: int) -> EncodedAnswer:
    moved = answer.prompt_ids[start:]
    ids = [*moved, *answer.ids][: max_length - start]
    offsets = np.concatenate([np.zeros((len(moved), 2), dtype=int), answer.offsets])[: len(ids)]
    return EncodedAnswer(answer.prompt_ids[:start], ids, offsets)


def weigh(
    encoded: Sequence[EncodedPair], config: AlignConfig, annotator: Annotator | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the weights of the answers' tokens, float32; 1 throughout without an annotator."""
    if annotator is None:
        return [
            tuple(np.ones(len(one.ids), dtype=np.float32) for one in item.answers)
            for item in encoded
        ]
    asked = [(item.pair.question, answer) for item in encoded for answer in item.pair.answers]
    harms = annotator.score(asked)
    theta, weights = annotator.settings.token_theta, []
    for number, item in enumerate(encoded):
        verdicts = [
            harm.of_tokens(answer.offsets)
            for harm, answer in zip(harms[2 * number : 2 * number + 2], item.answers, strict=True)
        ]
        if not config.soft:
            verdicts = [(one >= theta).astype(np.float32) for one in verdicts]
        # a pair's draw does not depend on the other pairs
        digest = hashlib.sha256(f"{config.seed} {item.pair.id}".encode()).digest()
        random = np.random.default_rng(list(digest[:8]))
        weights.append(token_weights(*verdicts, config.weights, config.alpha, random))
    return weights


def reference_log_probs(
    model: PreTrainedModel, encoded: Sequence[EncodedPair], config: AlignConfig, backbone: dict
) -> list[list[np.ndarray]]:
    """Returns log ref of each pair's answers' tokens; read from the cache where they are known.

    Args:
        model: The policy before its first step.
        encoded: The pairs.
        config: The options.
        backbone: From `backbone_summary`.
    """
    bf16 = use_bf16(config.precision, model.device)
    told = f"{sorted((backbone | {'folder': None}).items(), key=str)} {bf16}"
    folder = states_folder(cache_of(config) / "reference", told)
    texts = {}
    for item in encoded:
        for answer, ids in zip(item.answers, item.texts, strict=True):
            texts[state_key([len(answer.prompt_ids), *ids])] = (ids, len(answer.prompt_ids))
    known = read_states(folder)
    if new := [key for key in texts if key not in known]:
        rows = answer_log_probs(model, [texts[key] for key in new], config.eval_tokens, bf16)
        shown = tqdm(rows, "reference", total=len(new), unit="answer")
        states = ((new[row], values[:, None]) for row, values in shown)
        shape = sum(len(ids) - start for ids, start in (texts[key] for key in new)), 1
        write_states(folder, new, shape, states, "the reference's log-probabilities")
        known = read_states(folder)
    return [
        [
            np.array(known[state_key([len(answer.prompt_ids), *ids])])[:, 0]
            for answer, ids in zip(item.answers, item.texts, strict=True)
        ]
        for item in encoded
    ]


def as_dataset(
    encoded: Sequence[EncodedPair],
    weights: Sequence[tuple[np.ndarray, np.ndarray]],
    reference: Sequence[Sequence[np.ndarray]],
) -> Dataset:
    """Puts pairs into the form of TRL's tokenised ones, with weights and log ref a token."""
    columns: dict[str, list] = {"prompt_ids": [item.answers[0].prompt_ids for item in encoded]}
    for place, side in enumerate(SIDES):
        columns[f"{side}_ids"] = [item.answers[place].ids for item in encoded]
        columns[f"{side}_weights"] = [one[place] for one in weights]
        columns[f"{side}_reference"] = [one[place] for one in reference]
    return Dataset.from_dict(columns)

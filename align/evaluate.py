"""What a policy is measured by: its own answers, fixed texts and pairs, beside its reference."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from align.answers import Generated
from align.dataset import EncodedPair
from align.encoding import ChatPolicyEncoder, Turns
from align.measures import preferred
from model.log_probs import Text, answer_divergence, answer_log_probs
from utils.files import InputError


def answer_texts(answers: Sequence[Generated]) -> list[Text]:
    """Returns a policy's answers as texts with their prompts."""
    return [(one.prompt_ids + one.ids, len(one.prompt_ids)) for one in answers]


def pair_texts(encoded: Sequence[EncodedPair]) -> list[Text]:
    """Returns the chosen answer of each pair and its rejected one in turn."""
    return [
        (ids, len(answer.prompt_ids))
        for item in encoded
        for ids, answer in zip(item.texts, item.answers, strict=True)
    ]


def fixed_texts(
    tokenizer: PreTrainedTokenizerFast, answers: Sequence[tuple[str, Turns, str]], longest: int
) -> list[Text]:
    """Encodes answers, each with its id and conversation.

    `longest` tokens of both are kept, and one of an answer at least.
    """
    encoder, texts = ChatPolicyEncoder(tokenizer), []
    for identity, turns, answer in answers:
        try:
            encoded = encoder.encode(turns, answer)
        except InputError as error:
            raise InputError(f"answer '{identity}': {error}") from None
        start = len(encoded.prompt_ids)
        texts.append(((encoded.prompt_ids + encoded.ids)[: max(longest, start + 1)], start))
    return texts


def log_likelihoods(model: PreTrainedModel, texts: Sequence[Text], token_budget: int) -> np.ndarray:
    """Returns the mean log-probability of a token of each answer, float [N], in nats."""
    found = np.zeros(len(texts))
    for row, values in answer_log_probs(model, texts, token_budget):
        found[row] = values.mean()
    return found


def divergences(
    model: PreTrainedModel, reference: PreTrainedModel, texts: Sequence[Text], token_budget: int
) -> dict[str, np.ndarray]:
    """Measures KL(policy ‖ reference) along the policy's answers, float [N], in nats.

    By answer and by token.
    """
    values = {name: np.zeros(len(texts)) for name in ("kl_answer", "kl_token")}
    # logits of a whole vocabulary, of two models: a fourth of the tokens at a time
    budget = max(token_budget // 4, 1)
    for row, divergence in answer_divergence(model, reference, texts, budget):
        values["kl_answer"][row], values["kl_token"][row] = divergence.sum(), divergence.mean()
    return values


def compare_pairs(
    model: PreTrainedModel, reference: PreTrainedModel, texts: Sequence[Text], token_budget: int
) -> dict[str, np.ndarray]:
    """Tells of each pair whether the policy moved towards the chosen answer more.

    Args:
        model: The policy.
        reference: What it was before.
        texts: From `pair_texts`.
        token_budget: Padded tokens a batch.

    Returns:
        1, or 0.5 of a tie, by log π/ref of the answers and by its mean a token, float [pairs].
    """
    ratios, lengths = np.zeros(len(texts)), np.array([len(ids) - start for ids, start in texts])
    for sign, one in ((1, model), (-1, reference)):
        for row, values in answer_log_probs(one, texts, token_budget):
            ratios[row] += sign * float(values.sum())
    return {"preferred": preferred(ratios), "preferred_normalised": preferred(ratios / lengths)}

"""What a policy is measured by: its answers, fixed texts and pairs, beside its reference."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from align.answers import Generated
from align.dataset import encode_pairs
from align.encoding import ChatPolicyEncoder, Turns
from align.measures import preferred, text_measures
from align.pairs import Pair
from model.log_probs import answer_divergence, answer_log_probs


def log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    answers: Sequence[tuple[Turns, str]],
    longest: int,
    token_budget: int,
) -> np.ndarray:
    """Returns the mean log-probability of a token of each answer, float [N], in nats.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        answers: Conversations and how they go on; `longest` tokens of both are read.
        longest: Of the answer at least one token is read.
        token_budget: Padded tokens a batch.
    """
    encoder, texts = ChatPolicyEncoder(tokenizer), []
    for turns, answer in answers:
        encoded = encoder.encode(turns, answer)
        start = len(encoded.prompt_ids)
        texts.append(((encoded.prompt_ids + encoded.ids)[: max(longest, start + 1)], start))
    found = np.zeros(len(texts))
    for row, values in answer_log_probs(model, texts, token_budget):
        found[row] = values.mean()
    return found


def answer_measures(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    answers: Sequence[Generated],
    token_budget: int,
) -> dict[str, np.ndarray]:
    """Measures the policy's answers, and KL(policy ‖ reference) along them; float [N] each."""
    texts = [(one.prompt_ids + one.ids, len(one.prompt_ids)) for one in answers]
    found = [text_measures(one.text) for one in answers]
    values = {name: np.array([one[name] for one in found]) for name in found[0]}
    values["kl_answer"], values["kl_token"] = np.zeros((2, len(texts)))
    # logits of a whole vocabulary, of two models: a fourth of the tokens at a time
    budget = max(token_budget // 4, 1)
    for row, divergence in answer_divergence(model, reference, texts, budget):
        values["kl_answer"][row], values["kl_token"][row] = divergence.sum(), divergence.mean()
    return values


def compare_pairs(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    longest_prompt: int,
    token_budget: int,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Tells of each pair whether the policy moved towards the chosen answer more.

    Returns:
        The pairs' ids, without those whose prompt is too long; 1, or 0.5 of a tie, by log π/ref of
        the whole answers and by its mean a token, float [N] each.
    """
    encoded = encode_pairs(pairs, tokenizer, 2 * longest_prompt, longest_prompt)
    texts = [
        (ids, len(answer.prompt_ids))
        for item in encoded
        for ids, answer in zip(item.texts, item.answers, strict=True)
    ]
    ratios, lengths = np.zeros(len(texts)), np.array([len(ids) - start for ids, start in texts])
    for sign, one in ((1, model), (-1, reference)):
        for row, values in answer_log_probs(one, texts, token_budget):
            ratios[row] += sign * float(values.sum())
    measured = {"preferred": preferred(ratios), "preferred_normalised": preferred(ratios / lengths)}
    return [item.pair.id for item in encoded], measured

"""A policy's own answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from align.encoding import ChatPolicyEncoder, Turns
from data.batches import token_budget_batches


@dataclass
class Generated:
    """An answer.

    Attributes:
        prompt_ids: What it answers.
        ids: Its tokens, the one that ends it included.
        text: Without control tokens.
        ended: Whether it came to its end.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str
    ended: bool


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Turns],
    *,
    max_new_tokens: int,
    token_budget: int,
    temperature: float = 0.0,
    seed: int = 0,
    description: str = "answers",
) -> list[Generated]:
    """Lets a policy answer, in batches of like length.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        conversations: What is asked; one that comes twice is answered twice.
        max_new_tokens: Longest answer.
        token_budget: Padded tokens a batch holds at the most, answers included.
        temperature: 0 takes the likeliest token each time.
        seed: Of sampling.
        description: Of the progress bar.
    """
    encoder = ChatPolicyEncoder(tokenizer)
    prompts = [encoder.prompt_ids(turns) for turns in conversations]
    own = model.generation_config
    ends = {own.eos_token_id} if isinstance(own.eos_token_id, int) else set(own.eos_token_id or ())
    ends |= {tokenizer.eos_token_id} - {None}
    # padding is masked, so any id will do for it
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=padding,
        **sampling,
    )
    model.generation_config = settings  # generate() takes what is not set from the model's own
    answers: list[Generated | None] = [None] * len(prompts)
    lengths = np.array([len(ids) + max_new_tokens for ids in prompts])
    torch.manual_seed(seed)
    try:
        with tqdm(total=len(prompts), desc=description, unit="answer") as bar:
            for rows in token_budget_batches(lengths, token_budget):
                longest = max(len(prompts[row]) for row in rows)
                ids = torch.full((len(rows), longest), padding)
                mask = torch.zeros_like(ids)
                for place, row in enumerate(rows):  # generation needs padding on the left
                    ids[place, longest - len(prompts[row]) :] = torch.tensor(prompts[row])
                    mask[place, longest - len(prompts[row]) :] = 1
                made = model.generate(
                    ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    generation_config=settings,
                )
                for row, new in zip(rows, made[:, longest:].tolist(), strict=True):
                    stop = next((n for n, one in enumerate(new) if one in ends), None)
                    kept = new if stop is None else new[: stop + 1]
                    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
                    answers[row] = Generated(prompts[row], kept, text, stop is not None)
                bar.update(len(rows))
    finally:
        model.generation_config = own
    return answers

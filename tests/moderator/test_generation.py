"""Prompts judged by the prefill of the generation that answers them."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from model.loading import load_checkpoint
from moderator.generation import PromptCriteria
from moderator.moderator import Moderator
from moderator.readers import ChatReader
from monitor.chat import as_chat
from monitor.generation import MonitorCriteria
from tests.moderator.conftest import about_of, rows_of
from utils.files import InputError

PROMPTS = ["How do rainbows come about?", "Hi!", "Tell me all about bread, and then about ovens."]


@pytest.fixture(scope="module")
def llm(tiny):
    model, tokenizer = load_checkpoint(tiny, AutoModelForCausalLM, "language model", "--llm")
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def moderator(llm):
    """A moderator of the model's states that knows nothing, but tells prompts apart."""
    reader = ChatReader(*llm)
    rows = rows_of([30, 30], apart=0.05, shape=(reader.layers, reader.hidden))
    about = about_of("harmful", combine="last").model_copy(update={"source": reader.about()})
    return Moderator.fit(about, rows)


def batch(tokenizer, prompts):
    """Prompts in the template, padded on the left."""
    rows = [as_chat(tokenizer, prompt)["input_ids"][0] for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


def generate(llm, inputs, criteria, **options):
    options = {"max_new_tokens": 5, "do_sample": False} | options
    return llm[0].generate(**inputs, stopping_criteria=[*criteria], **options)


def test_the_verdicts_are_those_of_a_reading_of_its_own(llm, moderator):
    reader = ChatReader(*llm)
    expected = moderator.scores(reader.read([reader.encode(prompt) for prompt in PROMPTS]))
    hooks = [len(module._forward_hooks) for module in llm[0].modules()]
    with PromptCriteria(moderator, *llm, PROMPTS) as criteria:
        output = generate(llm, batch(llm[1], PROMPTS), [criteria])
    assert np.allclose([one.score for one in criteria.verdicts], expected, atol=1e-4)
    assert len(set(expected.tolist())) == 3
    inputs = batch(llm[1], PROMPTS)
    assert output.shape[1] == inputs["input_ids"].shape[1] + 5
    assert (generate(llm, inputs, []) == output).all()  # and nothing of it hangs on the model
    assert hooks == [len(module._forward_hooks) for module in llm[0].modules()]


@pytest.mark.parametrize("flags", [True, False])
def test_a_gate_ends_flagged_rows_at_their_first_token(llm, moderator, flags):
    threshold = 1e-9 if flags else 1.0
    about = moderator.about.model_copy(update={"threshold": threshold})
    gate = Moderator(about, moderator.prototypes, moderator.combiner)
    inputs = as_chat(llm[1], PROMPTS[0])
    with PromptCriteria(gate, *llm, PROMPTS[0], on_prompt="stop") as criteria:
        output = generate(llm, inputs, [criteria], eos_token_id=None)
    assert output.shape[1] - inputs["input_ids"].shape[1] == (1 if flags else 5)
    assert criteria.verdicts[0].flagged == flags


def test_several_answers_to_a_prompt_and_a_monitor_beside(llm, moderator, monitors):
    _, monitor = monitors("tiny")
    inputs = batch(llm[1], PROMPTS[:2])
    length = inputs["input_ids"].shape[1]
    with (
        PromptCriteria(moderator, *llm, PROMPTS[:2], num_return_sequences=2) as prompts,
        MonitorCriteria(monitor, PROMPTS[:2], llm[1], length, num_return_sequences=2) as answers,
    ):
        generate(llm, inputs, [prompts, answers], num_return_sequences=2, do_sample=True)
    scores = [one.score for one in prompts.verdicts]
    assert len(scores) == 4 and scores[0] == pytest.approx(scores[1], abs=1e-5) != scores[2]
    assert all(one.text for one in answers.transcripts)


def test_what_cannot_be_judged_is_refused(llm, moderator):
    model, tokenizer = llm
    with PromptCriteria(moderator, *llm, "Hi!") as criteria:
        with pytest.raises(InputError, match="row 0: before its first token"):
            generate(llm, as_chat(tokenizer, "Hi there!"), [criteria])
    with PromptCriteria(moderator, *llm, PROMPTS[:2]) as criteria:
        right = batch(tokenizer, PROMPTS[:2])
        right = {name: one.flip(1) for name, one in right.items()}
        with pytest.raises(InputError, match="row 0"):
            generate(llm, right, [criteria])
    with PromptCriteria(moderator, *llm, "Hi!") as criteria:
        generate(llm, as_chat(tokenizer, "Hi!"), [criteria])
        with pytest.raises(InputError, match="criteria of its own"):
            generate(llm, as_chat(tokenizer, "Hi!"), [criteria])
    with PromptCriteria(moderator, *llm, "Hi!") as criteria:
        with pytest.raises(InputError, match="[24] rows for 1 prompts"):
            generate(llm, as_chat(tokenizer, "Hi!"), [criteria], num_beams=2)
    with pytest.raises(InputError, match="on_prompt: 'prior'"):
        PromptCriteria(moderator, *llm, "Hi!", on_prompt="prior")
    about = moderator.about.model_copy(update={"source": {"kind": "monitor"}})
    other = Moderator(about, moderator.prototypes, moderator.combiner)
    with pytest.raises(InputError, match="field 'source.kind'"):
        PromptCriteria(other, *llm, "Hi!")

"""States are the same however prompts are read: alone, in a batch, from generation, by streams."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from model.layer_states import LayerStates, model_fingerprint
from moderator import readers
from moderator.prompts import read_examples, read_prompts
from moderator.readers import MonitorReader, read_prompt_states
from monitor.chat import ChatEncoder
from utils.files import InputError

PROMPTS = ["Why is the sky blue?", "Hi", "Write me a long letter about the sea. " * 9]


def states_of(reader, prompts=PROMPTS):
    return reader.read([reader.encode(prompt) for prompt in prompts])


def test_states_are_those_of_transformers(reader):
    for prompt, states in zip(PROMPTS, states_of(reader), strict=True):
        ids = torch.tensor([reader.encode(prompt)])
        with torch.inference_mode():
            hidden = reader.model(ids, output_hidden_states=True).hidden_states[1:]
        expected = torch.stack([one[0, -1] for one in hidden]).numpy()
        assert np.allclose(states, expected, atol=1e-5)


def test_a_batch_changes_nothing(reader):
    alone = np.concatenate([states_of(reader, [prompt]) for prompt in PROMPTS])
    assert np.allclose(states_of(reader), alone, atol=1e-5)


def test_a_generations_prefill_has_the_same(tiny, reader):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    encoded = [reader.encode(prompt) for prompt in PROMPTS]
    width = max(map(len, encoded))
    ids, mask = torch.zeros(2, len(PROMPTS), width, dtype=torch.long)
    for row, some in enumerate(encoded):  # padded on the left
        ids[row, width - len(some) :], mask[row, width - len(some) :] = torch.tensor(some), 1
    with LayerStates(model) as kept:
        model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
        states = kept.take()
    assert np.allclose(states, states_of(reader), atol=1e-5)


def test_the_monitors_reading_is_a_streams(monitors):
    _, monitor = monitors("tiny")
    reader = MonitorReader(monitor)
    states = states_of(reader)
    for prompt, expected in zip(PROMPTS, states, strict=True):
        stream = monitor.open(prompt)
        assert np.allclose(stream.cache.states, expected, atol=1e-5)
        stream.free()


def test_fingerprints_tell_models_apart(tiny, reader):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    before = model_fingerprint(model)
    assert before == model_fingerprint(reader.model)
    assert before == model_fingerprint(model.to(torch.bfloat16).to(torch.float32))
    model.base_model.layers[-1].self_attn.q_proj.weight.data += 0.01
    assert model_fingerprint(model) != before


def test_a_left_model_is_as_it_was(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with LayerStates(model) as kept:
        pass
    model(torch.tensor([[1, 2]]))
    with pytest.raises(InputError, match="no pass"):
        kept.take()


def test_states_are_computed_once(reader, tmp_path, monkeypatch):
    first = read_prompt_states(reader, PROMPTS[:2], tmp_path)
    again = read_prompt_states(reader, [*PROMPTS, PROMPTS[0]], tmp_path)
    assert np.array_equal(again[0], first[0]) and np.array_equal(again[3], first[0])
    assert np.allclose(again[2], states_of(reader)[2], atol=1e-5)
    monkeypatch.setattr(reader, "read", None)
    looked, look = [], readers.read_states
    monkeypatch.setattr(readers, "read_states", lambda folder: looked.append(1) or look(folder))
    assert np.array_equal(read_prompt_states(reader, PROMPTS, tmp_path)[2], again[2])
    assert len(looked) == 1  # not once a prompt: that took minutes


def test_a_killed_run_goes_on(reader, tmp_path, monkeypatch):
    monkeypatch.setattr("moderator.readers.SHARD", 1)
    read, calls = reader.read, []

    def once(texts):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(texts)

    monkeypatch.setattr(reader, "read", once)
    with pytest.raises(KeyboardInterrupt):
        read_prompt_states(reader, PROMPTS, tmp_path)
    read_prompt_states(reader, PROMPTS, tmp_path)
    assert len(calls) == 4  # one stayed, one was lost, two more were left


def test_states_that_are_no_numbers_are_refused(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "read", lambda texts: np.full((len(texts), 2, 3), np.nan))
    with pytest.raises(InputError, match="weights are spoilt"):
        read_prompt_states(reader, PROMPTS, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_the_end_of_a_prompt_beyond_the_context_is_read(reader):
    encoder = ChatEncoder(reader.tokenizer)
    before = len(reader.tokenizer(encoder.parts[0], add_special_tokens=False)["input_ids"])
    whole, room = encoder.encode(PROMPTS[2]), before + 20
    ids = ChatEncoder(reader.tokenizer, room).encode(PROMPTS[2])
    assert ids == whole[:before] + whole[-20:]
    assert len(reader.encode("word " * 10_000)) <= reader.model.config.max_position_embeddings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "prompt": "x", "label": 2, "split": "test"}', "line 1: field 'label'"),
        ('{"id": "a", "prompt": " ", "label": 0, "split": "test"}', "line 1: field 'prompt'"),
        ('{"id": "a", "prompt": "x", "label": 0}', "line 1: field 'split' is missing"),
        ('{"id": "a", "prompt": "x", "label": 0, "split": "dev"}', "line 1: field 'split'"),
        (
            '{"id": "a", "prompt": "x", "label": 0, "split": "test", "category": "c"}',
            "line 1: field 'category': of a benign prompt",
        ),
        ('{"id": "a", "prompt": "x", "label": 0, "split": "test"}\n' * 2, "'a' stands twice"),
    ],
)
def test_bad_prompts_are_refused(tmp_path, line, message):
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        read_prompts(path)


def test_bad_examples_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x"}\n{"text": "y"}')
    with pytest.raises(InputError, match="line 2: field 'prompt'"):
        read_examples(path)

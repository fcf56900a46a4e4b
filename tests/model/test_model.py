"""The model: names, heads, padding, causality, reload."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2Model

from data.batches import collate, token_budget_batches
from data.splits import load_examples, load_processed
from evaluation.predict import predict
from model.qwen_dual_task import QwenForDualTask, load_backbone, load_dual_task
from utils.files import InputError

FIELDS = "num_token_labels num_sequence_labels alpha beta gamma logic_reduce ignore_index".split()


@pytest.fixture(scope="module")
def model(tiny) -> QwenForDualTask:
    torch.manual_seed(0)
    loaded = load_backbone(tiny, alpha=0.6, logic_weight=1.0, token_dropout=0.1)
    for head in (loaded.token_classifier, loaded.sequence_classifier):
        torch.nn.init.normal_(head.weight, std=2.0)  # scores far from 0.5 show differences
    return loaded.eval()


@pytest.fixture(scope="module")
def examples(tiny_data):
    return load_examples(load_processed(tiny_data, None), "test")


def test_heads_are_new_and_xavier_uniform(tiny):
    fresh = load_backbone(tiny, alpha=0.6, logic_weight=1.0, token_dropout=0.1)
    for head in (fresh.token_classifier, fresh.sequence_classifier):
        bound = math.sqrt(6 / (64 + 2))
        assert head.weight.abs().max() <= bound and head.weight.abs().max() > 0.8 * bound
    assert (fresh.token_classifier.bias == 0).all()
    assert fresh.sequence_classifier.bias is None
    backbone = load_file(tiny / "model.safetensors")
    assert torch.equal(fresh.model.embed_tokens.weight, backbone["model.embed_tokens.weight"])


def test_a_checkpoint_with_the_released_names_loads(tmp_path):
    """Released names: parameters, architecture and config keys, weights in bfloat16."""
    config = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(1)
    weights = {f"model.{name}": tensor.bfloat16() for name, tensor in
               Qwen2Model(config).state_dict().items()}  # fmt: skip
    weights["token_classifier.weight"] = torch.randn(2, 16).bfloat16()
    weights["token_classifier.bias"] = torch.randn(2).bfloat16()
    weights["sequence_classifier.weight"] = torch.randn(2, 16).bfloat16()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    released = config.to_dict() | {
        "architectures": ["QwenForDualTask"], "num_token_labels": 2, "num_sequence_labels": 2,
        "alpha": 0.6, "beta": 0.4, "gamma": 1.0, "logic_reduce": "mean", "ignore_index": -100,
        "dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(released))
    loaded = load_dual_task(tmp_path)
    for name, tensor in weights.items():
        assert torch.equal(loaded.state_dict()[name], tensor.float()), name
    assert set(loaded.state_dict()) == set(weights)
    assert (loaded.config.alpha, loaded.config.beta, loaded.config.gamma) == (0.6, 0.4, 1.0)
    released["logic_reduce"] = "unheard of"  # only training needs it
    (tmp_path / "config.json").write_text(json.dumps(released))
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "response_mask": torch.tensor([[0, 1, 1]])}
    for model in (loaded, load_dual_task(tmp_path)):
        output = model.eval()(**batch)
        assert output.loss is None and output.token_logits.shape == (1, 3, 2)
    loaded.save_pretrained(tmp_path / "saved")  # old and new checkpoints are interchangeable
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["model_type"] == "qwen2" and saved["architectures"] == ["QwenForDualTask"]
    released["logic_reduce"] = "mean"
    assert {name: saved[name] for name in FIELDS} == {name: released[name] for name in FIELDS}
    assert set(saved) - set(released) == {"token_dropout"}


def test_reloading_changes_no_score(model, examples, tmp_path):
    model.save_pretrained(tmp_path)
    again = load_dual_task(tmp_path)
    before, after = predict(model, examples), predict(again, examples)
    assert all(map(np.array_equal, before.token_probs, after.token_probs))
    assert np.array_equal(before.response_prob, after.response_prob)


def test_padding_and_batch_layout_change_no_score(model, examples):
    # one response a batch, no padding
    reference = predict(model, examples, token_budget=1, with_losses=True)
    for budget, pad_to in ((4096, 0), (100_000, 0), (4096, 700)):
        scores = predict(model, examples, token_budget=budget, pad_to=pad_to, with_losses=True)
        for ours, theirs in zip(scores.token_probs, reference.token_probs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(scores.response_prob, reference.response_prob, atol=1e-5)
        assert scores.losses == pytest.approx(reference.losses, rel=1e-5, abs=1e-6)


def test_left_padding_changes_no_score(model, examples):
    item = examples[0]
    plain = collate([item])
    left = {name: plain[name] for name in ("input_ids", "attention_mask", "response_mask")}
    left = {name: torch.nn.functional.pad(tensor, (9, 0)) for name, tensor in left.items()}
    with torch.inference_mode():
        one, other = model(**plain), model(**left)
    torch.testing.assert_close(one.holistic_logits, other.holistic_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.token_logits, other.token_logits[:, 9:], atol=1e-4, rtol=1e-4)


def test_one_pass_is_every_prefix(model, examples):
    """Causal: the score of a token is what a model gives that has seen no more than its prefix."""
    tokens = predict(model, examples)
    whole = predict(model, examples, score_with="holistic")
    index = 3
    start, ids = examples.response_start[index], examples.input_ids[index]
    for place in range(start, len(ids)):
        prefix = torch.tensor(ids[None, : place + 1]).long()
        mask = (torch.arange(place + 1) >= start)[None]
        with torch.inference_mode():
            output = model(input_ids=prefix, response_mask=mask)
        token = output.token_logits[0, -1].softmax(-1)[1].item()
        holistic = output.holistic_logits[0].softmax(-1)[1].item()
        assert tokens.token_probs[index][place - start] == pytest.approx(token, abs=1e-5)
        assert whole.token_probs[index][place - start] == pytest.approx(holistic, abs=1e-5)


def test_full_detection_is_the_last_step_of_partial_detection(model, examples):
    scores = predict(model, examples, score_with="holistic")
    last = [probs[-1] for probs in scores.token_probs]
    np.testing.assert_allclose(last, scores.response_prob, atol=1e-5)


def test_what_labels_ignore_is_scored_all_the_same(model, examples):
    scores = predict(model, examples)
    assert [len(probs) for probs in scores.token_probs] == examples.response_lengths.tolist()
    blind = load_examples_without_labels(examples)
    again = predict(model, blind)
    assert all(map(np.array_equal, scores.token_probs, again.token_probs))


def load_examples_without_labels(examples):
    return replace(examples, token_labels=[np.full_like(x, -100) for x in examples.token_labels])


def test_token_budget_batches_hold_everything_once():
    lengths = np.random.default_rng(0).integers(1, 300, 200)
    batches = list(token_budget_batches(lengths, 1000))
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(batch) * lengths[batch].max() <= 1000 for batch in batches)
    assert lengths[batches[0]].max() == lengths.max()


def test_a_batch_holds_members_of_one_group():
    random = np.random.default_rng(0)
    lengths, groups = random.integers(1, 300, 200), random.integers(0, 9, 200)
    batches = list(token_budget_batches(lengths, 1000, groups))
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all(len(batch) * lengths[batch].max() <= 1000 for batch in batches)
    assert all(len(set(groups[batch])) == 1 for batch in batches)
    assert len(batches) < 200 and lengths[batches[0]].max() == lengths.max()
    assert list(token_budget_batches(lengths[:0], 1000, groups[:0])) == []


def test_a_score_that_is_no_number_is_refused(model, examples):
    """NaN ties with nothing: it would rank as well as a perfect score."""
    spoilt = copy.deepcopy(model)
    spoilt.token_classifier.bias.data[1] = math.nan
    with pytest.raises(InputError, match="record 'sample-.*': the model's score is not a number"):
        predict(spoilt, examples)


def test_dropout_touches_the_token_scorer_alone(model, examples):
    batch = collate([examples[0]])
    model.train()
    torch.manual_seed(0)
    one, other = model(**batch), model(**batch)
    model.eval()
    assert not torch.equal(one.token_logits, other.token_logits)
    assert torch.equal(one.holistic_logits, other.holistic_logits)


def test_what_is_no_dual_task_checkpoint_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="architectures.*Qwen2ForCausalLM"):
        load_dual_task(tiny)
    with pytest.raises(InputError, match="no model folder"):
        load_dual_task(tmp_path / "nowhere")
    config = json.loads((tiny / "config.json").read_text())
    liar = tmp_path / "liar"
    liar.mkdir()
    (liar / "config.json").write_text(json.dumps(config | {"architectures": ["QwenForDualTask"]}))
    with pytest.raises(InputError, match="safetensors"):
        load_dual_task(liar)
    (liar / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="weights do not fit.*classifier"):
        load_dual_task(liar)
    (liar / "model.safetensors").write_bytes(b"not safe")
    with pytest.raises(InputError, match="model.safetensors: cannot be read"):
        load_dual_task(liar)


def test_a_backbone_of_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="'llama' is not 'qwen2'"):
        load_backbone(tmp_path, alpha=0.6, logic_weight=1.0, token_dropout=0.1)

"""What a training computes: the same under other batches, LoRA, frozen layers, caches."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from model.qwen_dual_task import load_dual_task
from tests.train.conftest import largest_gap, score_as, weights
from train.train_qwen import main as train
from utils.files import InputError


def test_same_seed_same_weights_other_seed_others(config):
    folders = [str(Path(config.output_dir) / name) for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        train(replace(config, output_dir=folder, seed=seed))
    assert largest_gap(folders[0], folders[1]) == 0
    assert largest_gap(folders[0], folders[2]) > 0
    for folder in folders[:2]:
        out = f"{folder}-metrics"
        score_as("scm", folder, config.data_dir, out)
    one, two = (Path(f"{folder}-metrics", "metrics.json").read_bytes() for folder in folders[:2])
    assert one == two  # trained and tested twice: the same to the bit


def test_one_batch_of_eight_is_eight_of_one(config):
    folders, config = [], replace(config, benign_weight=0.5, benign_k=2)
    for micro in (8, 2, 1):
        folders.append(f"{config.output_dir}-{micro}")
        changes = {"output_dir": folders[-1], "micro_batch_size": micro, "token_dropout": 0.0}
        train(replace(config, **changes))
    assert largest_gap(folders[0], folders[1]) < 2e-4
    assert largest_gap(folders[0], folders[2]) < 2e-4
    logs = [json.loads((Path(folder) / "run.json").read_text())["log"] for folder in folders]
    parts = ("token_loss", "holistic_loss", "logic_loss", "benign_loss")
    for name in ("loss", *parts, "grad_norm"):
        first, *others = ([entry[name] for entry in log if "loss" in entry] for log in logs)
        for other in others:
            assert other == pytest.approx(first, rel=1e-3, abs=1e-5)


def test_lora_trains_and_leaves_a_plain_checkpoint(config, tiny):
    train(replace(config, lora_rank=4))
    base, tuned = weights(tiny), weights(config.output_dir)
    assert set(base) < set(tuned) and not any("lora" in name for name in tuned)
    load_dual_task(config.output_dir)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(base[name], tuned[name])
    assert torch.equal(base["model.embed_tokens.weight"], tuned["model.embed_tokens.weight"])
    change = torch.linalg.matrix_rank(tuned[name] - base[name], rtol=1e-3)
    assert change <= 4
    shapes = [tensor.shape for name, tensor in base.items() if "_proj.weight" in name]
    expected = sum(4 * sum(shape) for shape in shapes) + 2 * (64 * 2) + 2  # and the heads
    record = json.loads((Path(config.output_dir) / "run.json").read_text())
    assert record["parameters"]["trained"] == expected
    best = Path(config.output_dir) / f"checkpoint-{record['best']['step']}"
    heads = load_file(best / "adapter_model.safetensors")
    head = next(value for key, value in heads.items() if "sequence_classifier" in key)
    assert torch.equal(head, tuned["sequence_classifier.weight"])


def test_last_layers_leaves_the_others_alone(config, tiny):
    train(replace(config, last_layers=1))
    base, tuned = weights(tiny), weights(config.output_dir)
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert moved and all(name.startswith(("model.layers.2.", "model.norm")) for name in moved)
    with pytest.raises(InputError, match="--last-layers: 9 of a backbone with 3 layers"):
        train(replace(config, last_layers=9, output_dir=f"{config.output_dir}-9"))


def test_lora_on_the_last_layers_leaves_the_others_alone(config, tiny, tmp_path):
    options = {"last_layers": 1, "lora_rank": 4, "lora_dropout": 0.0, "token_dropout": 0.0}
    plain = replace(config, **options)
    cached = replace(plain, output_dir=str(tmp_path / "cached"), frozen_cache=str(tmp_path / "c"))
    for one in (plain, cached):
        train(one)
    base, tuned = weights(tiny), weights(plain.output_dir)
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert len(moved) == 7 and all(name.startswith("model.layers.2.") for name in moved)
    assert largest_gap(plain.output_dir, cached.output_dir) < 1e-4


def test_the_first_layers_alone_are_kept(config, tiny, tiny_data, tmp_path):
    config = replace(config, first_layers=2, last_layers=1)
    train(config)
    base, tuned = weights(tiny), weights(config.output_dir)
    assert {name for name in base if ".layers.2." not in name} <= set(tuned)
    assert not any(".layers.2." in name for name in tuned)
    assert torch.equal(
        base["model.layers.0.mlp.up_proj.weight"], tuned["model.layers.0.mlp.up_proj.weight"]
    )
    assert load_dual_task(Path(config.output_dir)).config.num_hidden_layers == 2
    plain, cached = tmp_path / "plain", tmp_path / "cached"
    score_as("scm", Path(config.output_dir), tiny_data, plain)
    score_as("scm", Path(config.output_dir), tiny_data, cached, frozen_cache=str(tmp_path / "c"))
    one, two = (np.load(folder / "predictions.npz") for folder in (plain, cached))
    np.testing.assert_allclose(one["test_token_probs"], two["test_token_probs"], atol=1e-5)
    with pytest.raises(InputError, match="--first-layers: 4 of a backbone with 3 layers"):
        train(replace(config, first_layers=4, output_dir=f"{config.output_dir}-4"))
    with pytest.raises(InputError, match="--last-layers: 3 of a backbone with 2 layers"):
        train(replace(config, last_layers=3, output_dir=f"{config.output_dir}-3"))


def test_checkpointed_activations_are_computed_twice_and_change_nothing(config, monkeypatch):
    calls, original = [], Qwen2MLP.forward
    monkeypatch.setattr(Qwen2MLP, "forward", lambda *a: calls.append(1) or original(*a))
    train(replace(config, token_dropout=0.0))
    once = len(calls)
    other = f"{config.output_dir}-checkpointing"
    train(replace(config, token_dropout=0.0, gradient_checkpointing=True, output_dir=other))
    assert len(calls) - once > once
    assert largest_gap(config.output_dir, other) < 1e-6


def test_eager_attention_and_bf16_train(config):
    train(replace(config, attention="eager", precision="bf16"))
    record = json.loads((Path(config.output_dir) / "run.json").read_text())
    assert record["bf16"] and next(iter(weights(config.output_dir).values())).dtype == torch.float32


def test_a_loss_that_is_no_number_ends_the_run(config):
    with pytest.raises(InputError, match=r"^training step \d+: the loss is not a number"):
        train(replace(config, learning_rate=1e30, max_grad_norm=0.0))
    assert not (Path(config.output_dir) / "model.safetensors").exists()


def test_weights_spoilt_by_the_last_step_are_no_result(config):
    """The loss before the step was fine; validation after it is what notices."""
    with pytest.raises(InputError, match="the model's score is not a number"):
        train(replace(config, learning_rate=1e38, epochs=0.1))
    assert not (Path(config.output_dir) / "model.safetensors").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"alpha": 1.5}, "--alpha: 1.5 is not in 0…1"),
        ({"epochs": 0}, "--epochs: 0 is not > 0"),
        ({"learning_rate": float("nan")}, "--learning-rate: nan is not > 0"),
        ({"last_layers": -1}, "--last-layers: -1 is not >= 0"),
        ({"eval_steps": 2.5}, "--eval-steps: 2.5 is neither a share nor whole"),
        ({"first_layers": -1}, "--first-layers: -1 is not >= 0"),
        ({"benign_k": 0}, "--benign-k: 0 is not >= 1"),
        ({"warmup_ratio": 0.1}, "exponential schedule has no warm-up"),
    ],
)
def test_a_bad_option_is_named(changes, message, config):
    with pytest.raises(InputError, match=message):
        replace(config, **changes)


def test_batches_that_do_not_divide_are_refused(config):
    with pytest.raises(InputError, match="--batch-size: 8 is not a multiple of micro batch 3"):
        train(replace(config, micro_batch_size=3))


def test_training_on_data_of_another_tokenizer_is_refused(config, tokenizers, tmp_path):
    other = tmp_path / "backbone"
    shutil.copytree(config.base_model_path, other)
    tokenizers("modernbert-style").save_pretrained(other)
    with pytest.raises(InputError, match="another tokenizer"):
        train(replace(config, base_model_path=str(other)))
    assert not Path(config.output_dir).exists()


def test_cached_frozen_layers_train_what_computed_ones_do(config, tiny_data, tmp_path):
    config = replace(config, last_layers=1, token_dropout=0.0, epochs=2.0)
    plain = replace(config, output_dir=str(tmp_path / "plain"))
    cached = replace(config, output_dir=str(tmp_path / "cached"), frozen_cache=str(tmp_path / "c"))
    again = replace(cached, output_dir=str(tmp_path / "again"))
    for one in (plain, cached, again):
        train(one)
    assert largest_gap(plain.output_dir, cached.output_dir) < 1e-4
    assert largest_gap(again.output_dir, cached.output_dir) == 0
    assert len(list((tmp_path / "c").rglob("*.npy"))) == 1  # the second run reads it
    options = {"plain": "", "cached": str(tmp_path / "of-tests")}
    for name, folder in options.items():  # tests may read frozen layers from a cache, too
        out = tmp_path / f"tested-{name}"
        score_as("scm", Path(cached.output_dir), tiny_data, out, frozen_cache=folder)
    one, two = (np.load(tmp_path / f"tested-{name}" / "predictions.npz") for name in options)
    np.testing.assert_allclose(one["test_token_probs"], two["test_token_probs"], atol=1e-5)
    np.testing.assert_allclose(one["test_response_prob"], two["test_response_prob"], atol=1e-5)
    with pytest.raises(InputError, match="--frozen-cache"):
        replace(cached, last_layers=0)

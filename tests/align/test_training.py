"""Trainings: where they are TRL's DPO, what does not change them, and how they go on."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from align.dataset import SIDES, as_dataset, encode_pairs
from align.options import AlignConfig
from align.pairs import read_pairs
from align.train import main as align
from align.trainer import PreferenceTrainer, WeightedCollator
from data.tokenization import load_tokenizer
from tests.conftest import ROOT, run
from tests.train.conftest import largest_gap
from train.training import training_arguments
from utils.files import InputError
from utils.run_record import FinishedAlready


def record_of(config: AlignConfig) -> dict:
    return json.loads((Path(config.output_dir) / "run.json").read_text())


def losses(log: list[dict]) -> list[float]:
    return [entry["loss"] for entry in log if "loss" in entry]


def words_of(config: AlignConfig, *more: str) -> list[str]:
    """The command line of a configuration, from the script on."""
    words = ["bash", "scripts/run-align.sh", config.method]
    names = (
        "output_dir data_dir base_model_path batch_size micro_batch_size learning_rate epochs"
        " logging_steps eval_steps precision max_length max_prompt_length state_cache"
        " annotator_model".split()
    )
    for name in names:
        if value := getattr(config, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, *more]


class PlainTrainer(DPOTrainer):
    """TRL's DPO, with the order of ours."""

    config: AlignConfig
    _get_train_sampler = PreferenceTrainer._get_train_sampler


def trl_losses(config: AlignConfig, pairs: Path) -> list[float]:
    """Trains with TRL alone: its tokenising, reference and loss."""
    arguments = training_arguments(
        config, DPOConfig, beta=config.beta, max_length=config.max_length,
        gradient_checkpointing=False,
    )  # fmt: skip
    tokenizer = load_tokenizer(Path(config.base_model_path))
    sides = {
        name: [
            {"prompt": pair.turns}
            | {side: [turn.model_dump() for turn in getattr(pair, side)] for side in SIDES}
            for pair in some
        ]
        for name, some in read_pairs(pairs).items()
    }
    models = [AutoModelForCausalLM.from_pretrained(config.base_model_path) for _ in range(2)]
    trainer = PlainTrainer(
        *models,
        args=arguments,
        train_dataset=Dataset.from_list(sides["train"]),
        eval_dataset=Dataset.from_list(sides["valid"]),
        processing_class=tokenizer,
    )
    trainer.config = config
    trainer.train()
    return losses(trainer.state.log_history)


def test_alpha_0_is_the_dpo_of_trl(config, annotator, pairs, tmp_path):
    config = replace(config, epochs=2)
    align(config)
    ours = losses(record_of(config)["log"])
    by_token = replace(
        config, output_dir=str(tmp_path / "token"), method="tokendpo", alpha=0.0,
        annotator_model=str(annotator),
    )  # fmt: skip
    align(by_token)
    assert losses(record_of(by_token)["log"]) == ours  # to the bit
    theirs = trl_losses(replace(config, output_dir=str(tmp_path / "trl")), pairs)
    assert len(ours) == 8 and ours[0] == pytest.approx(np.log(2), abs=1e-6)
    assert [f"{loss:.4g}" for loss in ours] == [f"{loss:.4g}" for loss in theirs]
    assert ours == pytest.approx(theirs, abs=2e-6)
    weighted = replace(by_token, output_dir=str(tmp_path / "weighted"), alpha=1.0)
    align(weighted)
    assert abs(losses(record_of(weighted)["log"])[-1] - ours[-1]) > 1e-4
    told = record_of(weighted)["pairs"]["train"]
    assert told["rejected_weight"] > told["rejected_tokens"]
    assert told["chosen_weight"] < told["chosen_tokens"]


def test_prompt_tokens_weigh_nothing(policy, pairs):
    tokenizer = load_tokenizer(policy)
    encoded = encode_pairs(read_pairs(pairs)["train"][:3], tokenizer, 128, 96)
    values = [tuple(np.full(len(one.ids), 7.0) for one in item.answers) for item in encoded]
    batch = WeightedCollator(0).torch_call(as_dataset(encoded, values, values).to_list())
    answers = batch["completion_mask"].bool()
    for name in ("weights", "reference"):
        assert (batch[name][answers] == 7).all() and (batch[name][~answers] == 0).all()
    assert answers.sum() == sum(len(one.ids) for item in encoded for one in item.answers)


@pytest.mark.parametrize("method", ["sft", "dpo", "tokendpo"])
def test_the_layout_of_batches_changes_nothing(config, annotator, tmp_path, method):
    given = {"annotator_model": str(annotator)} if method == "tokendpo" else {}
    one = replace(config, method=method, micro_batch_size=1, **given)
    other = replace(one, micro_batch_size=4, output_dir=str(tmp_path / "other"))
    for each in (one, other):
        align(each)
    assert largest_gap(one.output_dir, other.output_dir) < 1e-4
    first, second = (record_of(each)["log"] for each in (one, other))
    assert losses(first) == pytest.approx(losses(second), abs=1e-5)


def test_frozen_layers_from_disk_change_nothing(config, tmp_path):
    part = replace(config, last_layers=1)
    cached = replace(
        part, output_dir=str(tmp_path / "cached"), frozen_cache=str(tmp_path / "frozen"),
        state_cache=str(tmp_path / "other"),
    )  # fmt: skip
    for each in (part, cached):
        align(each)
    assert largest_gap(part.output_dir, cached.output_dir) < 1e-5
    before = AutoModelForCausalLM.from_pretrained(config.base_model_path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(part.output_dir).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("model.layers.2.", "model.norm")) for name in moved)


def test_lora_trains_and_is_merged(config):
    align(replace(config, lora_rank=2, lora_dropout=0.0))
    before = AutoModelForCausalLM.from_pretrained(config.base_model_path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(config.output_dir).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(before) == set(after) and len(moved) == 3 * 7
    assert losses(record_of(config)["log"])[0] == pytest.approx(np.log(2), abs=1e-6)


def test_the_dropout_of_lora_is_left_on(config, tmp_path):
    one = replace(config, lora_rank=2, lora_dropout=0.0)
    other = replace(one, lora_dropout=0.5, output_dir=str(tmp_path / "other"))
    for each in (one, other):
        align(each)
    assert losses(record_of(one)["log"])[1:] != losses(record_of(other)["log"])[1:]


def test_margins_are_told_with_training_alone(config):
    align(replace(config, eval_steps=1, logging_steps=2))
    log = record_of(config)["log"]
    assert all("rewards/margins" in entry for entry in log if "loss" in entry)
    assert not any("rewards/margins" in entry for entry in log if "eval_loss" in entry)


def test_more_room_than_the_policy_has_is_refused(config):
    with pytest.raises(InputError, match="--max-length: 9000; the policy has room for 4096"):
        align(replace(config, max_length=9000))


def test_validation_moves_towards_the_chosen_answers(config):
    align(replace(config, epochs=8, learning_rate=5e-3))
    log = [entry for entry in record_of(config)["log"] if "eval_preference_accuracy" in entry]
    assert log[-1]["eval_preference_accuracy"] > 0.9
    assert log[-1]["eval_log_ratio_chosen"] > log[-1]["eval_log_ratio_rejected"]
    assert log[-1]["eval_loss"] < log[0]["eval_loss"]


def test_supervised_fine_tuning_raises_the_chosen_answers(config):
    align(replace(config, method="sft", epochs=4))
    log = [entry for entry in record_of(config)["log"] if "eval_loss" in entry]
    assert log[-1]["eval_loss"] < log[0]["eval_loss"]
    assert log[-1]["eval_log_ratio_chosen"] > 0


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_unbroken_end(config, annotator):
    config = replace(
        config, method="tokendpo", annotator_model=str(annotator), epochs=6, eval_steps=4
    )
    unbroken = replace(config, output_dir=f"{config.output_dir}-unbroken")
    align(unbroken)
    folder = Path(config.output_dir)
    victim = subprocess.Popen(
        words_of(config), cwd=ROOT, env=os.environ, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoint-*/trainer_state.json")):
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (folder / "config.json").exists()
    with pytest.raises(InputError, match="holds an unfinished run"):
        align(config)
    run(*words_of(config, "--resume"))
    record = record_of(config)
    assert record["status"] == "finished" and record["resumed_from"].startswith("checkpoint-")
    assert largest_gap(folder, unbroken.output_dir) < 1e-6
    assert losses(record["log"]) == pytest.approx(losses(record_of(unbroken)["log"]), abs=1e-6)
    with pytest.raises(FinishedAlready):
        align(config)


@pytest.mark.parametrize("wrong, message", [
    ({"method": "tokendpo"}, "--annotator-model: is needed with --method tokendpo"),
    ({"annotator_model": "scm"}, "--annotator-model: of no use with --method dpo"),
    ({"alpha": 0.5}, "of no use with --method dpo"),
    ({"beta": 0.0}, "--beta: 0.0 is not > 0"),
    ({"max_prompt_length": 128}, "--max-prompt-length: leaves no room"),
    ({"frozen_cache": "f"}, "--frozen-cache: no layer is frozen"),
    ({"lr_gamma": 0.5}, "--lr-gamma: of no use"),
])  # fmt: skip
def test_options_that_make_no_sense(config, wrong, message):
    with pytest.raises(InputError, match=message):
        replace(config, **wrong)


def test_a_policy_without_chat_template_is_refused(config, tiny):
    with pytest.raises(InputError, match="has no chat template"):
        align(replace(config, base_model_path=str(tiny)))
    assert not Path(config.output_dir).exists()

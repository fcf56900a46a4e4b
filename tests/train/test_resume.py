"""Trainings that are killed, shared among processes, or meet in one folder."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data.options import DataConfig
from data.prepare import main as prepare
from tests.conftest import ROOT, run
from tests.train.conftest import largest_gap, words_of
from train import training
from train.train_qwen import main as train
from utils.files import InputError
from utils.run_record import FinishedAlready


@pytest.mark.slow
def test_two_processes_give_what_one_gives(config):
    config = replace(config, epochs=2)
    train(replace(config, token_dropout=0.0))
    two = f"{config.output_dir}-2"
    words = words_of(replace(config, output_dir=two, micro_batch_size=4), "--token-dropout", "0")
    launcher = f"{Path(sys.executable).parent}/torchrun --standalone --nproc_per_node 2"
    run("bash", "scripts/run-scm.sh", *words, LAUNCHER=launcher, OMP_NUM_THREADS="1")
    assert largest_gap(config.output_dir, two) < 2e-4
    logs = [
        json.loads((Path(folder) / "run.json").read_text())["log"]
        for folder in (config.output_dir, two)
    ]
    for name in ("loss", "token_loss", "logic_loss", "eval_loss", "eval_macro_f1"):
        one, other = ([entry[name] for entry in log if name in entry] for log in logs)
        assert one and other == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_unbroken_end(config, small_fineharm):
    config = replace(config, epochs=4)
    unbroken = replace(config, output_dir=f"{config.output_dir}-unbroken")
    train(unbroken)
    folder = Path(config.output_dir)
    victim = subprocess.Popen(
        ["bash", "scripts/run-scm.sh", *words_of(config)],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoint-*/trainer_state.json")):
        assert victim.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert not (folder / "config.json").exists()  # nothing that looks like a result
    (folder / "checkpoint-900").mkdir()  # as if killed while writing another one
    (folder / "checkpoint-900" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="holds an unfinished run; pass --resume or --overwrite"):
        train(config)
    with pytest.raises(InputError, match="field 'config.seed': the run was started with 42, not 7"):
        train(replace(config, resume=True, seed=7))
    other_data = Path(config.output_dir).parent / "data"
    prepare(DataConfig(str(other_data), config.base_model_path, str(small_fineharm), "original"))
    with pytest.raises(
        InputError, match="field 'data.meta_sha256': the run was started with another"
    ):
        train(replace(config, resume=True, data_dir=str(other_data)))
    train(replace(config, resume=True))
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["resumed_from"].startswith("checkpoint-")
    assert len(record["earlier_sessions"]) == 1
    assert largest_gap(folder, unbroken.output_dir) < 1e-6
    again = json.loads((Path(unbroken.output_dir) / "run.json").read_text())
    assert record["best"] == again["best"]
    assert not (folder / "checkpoint-900").exists()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    for same in (replace(config, resume=True), config):
        with pytest.raises(FinishedAlready):
            train(same)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_second_training_leaves_the_first_alone(config, monkeypatch):
    """It comes while the first is still loading: nothing is in the folder yet."""
    refused, load = [], training.load_tokenizer

    def load_beside(folder):
        monkeypatch.setattr(training, "load_tokenizer", load)
        for second in (config, replace(config, overwrite=True), replace(config, resume=True)):
            with pytest.raises(InputError, match="another process is writing to it"):
                train(second)
            refused.append(second)
        return load(folder)

    monkeypatch.setattr(training, "load_tokenizer", load_beside)
    train(replace(config, epochs=0.5))
    assert len(refused) == 3 and (Path(config.output_dir) / "model.safetensors").exists()


def test_a_folder_of_data_is_not_overwritten_by_a_run(config, tiny_data):
    with pytest.raises(InputError, match="holds the run of another command and is not overw"):
        train(replace(config, output_dir=str(tiny_data), overwrite=True))
    assert (tiny_data / "meta.json").exists()

"""Training and testing through the scripts: layouts, resuming, variants, refusals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from data.options import DataConfig
from data.prepare import main as prepare
from data.splits import load_processed
from data.tokenization import load_tokenizer
from model.export_classifier import main as export_classifier
from model.options import ExportConfig
from model.qwen_dual_task import load_dual_task
from reports.figures import draw_all
from reports.options import TablesConfig
from reports.rows import full_detectors, load_method
from reports.tables import main as make_tables
from test.baselines import main as measure_floor
from test.causal import TestConfig as CausalConfig
from test.causal import main as evaluate
from test.options import BaselineConfig
from tests.conftest import ROOT, run
from train.options import QwenConfig
from train.train_qwen import main as train
from utils.files import InputError

FAST = {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 2e-3, "logging_steps": 1}


@pytest.fixture()
def config(tiny, tiny_data, tmp_path) -> QwenConfig:
    """One epoch of six steps on the tiny model, in float32."""
    return QwenConfig(
        str(tmp_path / "run"), str(tiny_data), str(tiny), epochs=1, eval_steps=3,
        precision="fp32", **FAST,
    )  # fmt: skip


def words_of(config: QwenConfig, *more: str) -> list[str]:
    """The command line of a configuration."""
    words = [
        "--output-dir", config.output_dir, "--data-dir", config.data_dir,
        "--base-model-path", config.base_model_path, "--epochs", str(config.epochs),
        "--eval-steps", str(config.eval_steps), "--precision", config.precision,
    ]  # fmt: skip
    for name in FAST:
        words += [f"--{name.replace('_', '-')}", str(getattr(config, name))]
    return [*words, *more]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def largest_gap(one, other) -> float:
    ours, theirs = weights(one), weights(other)
    assert set(ours) == set(theirs)
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


@pytest.fixture(scope="module")
def trained(tiny, tiny_data, tmp_path_factory) -> Path:
    """A run of the real shell script."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = QwenConfig(
        str(folder), str(tiny_data), str(tiny), epochs=2, eval_steps=0.25, precision="fp32", **FAST
    )
    run("bash", "scripts/run-scm.sh", *words_of(config))
    return folder


def test_the_run_leaves_model_record_and_logs(trained, tiny_data):
    model = load_dual_task(trained)
    load_processed(tiny_data, load_tokenizer(trained))  # its tokenizer is the data's
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "finished" and record["best"]["step"] > 0
    assert record["config"]["seed"] == 42 and record["config"]["scheduler"] == "exponential"
    assert record["data"]["inputs"]["train"]["sha256"] and record["versions"]["torch"]
    assert record["parameters"]["all"] == sum(p.numel() for p in model.parameters())
    steps = [entry for entry in record["log"] if "loss" in entry]
    assert len(steps) == 12
    for entry in steps:
        parts = 0.6 * entry["token_loss"] + 0.4 * entry["holistic_loss"] + entry["logic_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-4)
        assert entry["train_tokens_per_second"] > 0
    rates = [entry["learning_rate"] for entry in steps]
    assert rates == pytest.approx([2e-3 * 0.99**step for step in range(12)])
    checks = [entry for entry in record["log"] if "eval_macro_f1" in entry]
    assert len(checks) == 4 and not any("token_loss" in entry for entry in checks)
    best = max(checks, key=lambda entry: entry["eval_macro_f1"])
    assert record["best"]["step"] == best["step"]
    assert list((trained / "tensorboard").glob("events*"))
    checkpoint = trained / f"checkpoint-{record['best']['step']}"
    assert largest_gap(trained, checkpoint) == 0  # the root holds the best, not the last


@pytest.fixture(scope="module")
def tested(trained, tiny_data, tmp_path_factory) -> list[Path]:
    """Two runs of the test script."""
    folders = [tmp_path_factory.mktemp("metrics") / name for name in ("one", "two")]
    outputs = [
        run(
            "bash", "scripts/run-scm.sh", "test", "--model-path", trained,
            "--data-dir", tiny_data, "--output-dir", folder, "--bootstrap", "200",
        ).stdout
        for folder in folders
    ]  # fmt: skip
    assert "partial detection" in outputs[0] and "macro F1" in outputs[0]
    return folders


def test_two_runs_give_the_same_metrics_to_the_bit(tested):
    one, two = ((folder / "metrics.json").read_bytes() for folder in tested)
    assert one == two


def test_the_report_is_complete_and_consistent(tested):
    folder = tested[0]
    result = json.loads((folder / "metrics.json").read_text())
    assert result["partial"]["chosen_on"] == "valid"
    assert result["partial_paper_protocol"]["chosen_on"] == "test"
    best = result["partial_paper_protocol"]["test"]["macro_f1"]["value"]
    assert best >= result["partial"]["test"]["macro_f1"]["value"]
    scores = np.load(folder / "predictions.npz")  # no pickle inside
    probs = np.split(scores["test_token_probs"], scores["test_offsets"][1:-1])
    label = scores["test_response_label"]
    theta, k = result["partial"]["theta"], result["partial"]["k"]
    flagged = np.array([(some >= theta).sum() >= k for some in probs])
    false_alarms = (flagged & (label == 0)).sum() / (label == 0).sum()
    assert result["partial"]["test"]["false_alarm_rate"]["value"] == pytest.approx(false_alarms)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["data"]["meta_sha256"]
    picture = imread(folder / "stop_positions.png")  # (height, width, channels)
    assert picture.shape[1] > 600 and len(np.unique(picture)) > 20


def score_as(row: str, model: Path, data: Path, out: Path, **options) -> None:
    """Tests a checkpoint as a causal row."""
    evaluate(
        CausalConfig(str(data), str(out), row=row, model_path=str(model), bootstrap=50, **options)
    )


def test_holistic_at_every_token_is_a_named_variant(trained, tiny_data, tmp_path):
    out = tmp_path / "metrics"
    score_as("scm", trained, tiny_data, out, score_with="holistic")
    scores = np.load(out / "predictions.npz")
    last = scores["test_token_probs"][scores["test_offsets"][1:] - 1]
    np.testing.assert_allclose(last, scores["test_response_prob"], atol=1e-5)
    assert "holistic" in json.loads((out / "metrics.json").read_text())["method"]
    told, training = (json.loads((one / "run.json").read_text()) for one in (out, trained))
    assert told["model"]["config"] == training["config"]  # tables tell trainings apart by these
    assert told["model"]["backbone"] == training["backbone"]
    assert told["model"]["data_sha256"] == training["data"]["meta_sha256"]


@pytest.fixture(scope="module")
def baseline(tiny, tiny_data, tmp_path_factory) -> Path:
    """A run of the full-detection baseline's script."""
    folder = tmp_path_factory.mktemp("baseline") / "qwen"
    config = QwenConfig(
        str(folder), str(tiny_data), str(tiny), epochs=1, eval_steps=0.5, precision="fp32", **FAST
    )
    run("bash", "scripts/run-qwen-full.sh", *words_of(config))
    return folder


def test_qwen_full_and_partial_are_one_model(baseline, tiny_data, tmp_path):
    config = json.loads((baseline / "config.json").read_text())
    assert config["alpha"] == 0 and config["gamma"] == 0
    for row in ("full", "partial"):
        run(
            "bash", f"scripts/run-qwen-{row}.sh", "test", "--model-path", baseline,
            "--data-dir", tiny_data, "--output-dir", tmp_path / row, "--bootstrap", "50",
        )  # fmt: skip
    full, partial = (np.load(tmp_path / row / "predictions.npz") for row in ("full", "partial"))
    assert "test_token_probs" not in full
    np.testing.assert_array_equal(full["test_response_prob"], partial["test_response_prob"])
    last = partial["test_token_probs"][partial["test_offsets"][1:] - 1]
    np.testing.assert_allclose(last, full["test_response_prob"], atol=1e-5)
    assert json.loads((tmp_path / "full" / "metrics.json").read_text()).keys() == {
        "row", "method", "responses", "full"
    }  # fmt: skip
    fresh = load_file(baseline / "model.safetensors")["token_classifier.bias"]
    assert (fresh == 0).all()  # nothing has trained the token scorer


def test_a_checkpoint_is_tested_as_what_it_was_trained(baseline, trained, tiny_data, tmp_path):
    for model, row in ((baseline, "scm"), (trained, "qwen-full"), (trained, "qwen-partial")):
        with pytest.raises(InputError, match="config.json: field 'alpha': it was trained as"):
            score_as(row, model, tiny_data, tmp_path / "out")
    with pytest.raises(InputError, match="--score-with: the row qwen-full has its holistic scorer"):
        CausalConfig("d", "o", row="qwen-full", model_path="m", score_with="holistic")
    done = run("bash", "scripts/run-qwen-partial.sh", "--output-dir", "x", check=False)
    assert done.returncode == 2 and "nothing is trained here" in done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": -1}, "--seed: -1 is below 0"),
        ({"target_false_alarm": 1.0}, "--target-false-alarm: 1.0 is not in 0…1"),
        ({"detection": "full", "target_false_alarm": 0.1}, "full detection stops no stream"),
        ({"detection": "full", "target_k": 9}, "--target-k: full detection stops no stream"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_scored(options, message):
    with pytest.raises(InputError, match=message):
        BaselineConfig("d", "o", **options)
    BaselineConfig("d", "o", seed=0, target_false_alarm=0.1, target_k=9)
    target = {"target_false_alarm": 0.1}
    with pytest.raises(InputError, match="--target-k: full detection stops no stream"):
        CausalConfig("d", "o", row="qwen-full", model_path="m", **target)
    CausalConfig("d", "o", row="qwen-partial", model_path="m", **target)


def test_an_untrained_holistic_scorer_judges_nothing(config, tmp_path):
    """The ablation α 1 without logic loss: partial detection alone, in tables and figures, too."""
    train(replace(config, alpha=1.0, beta=0.0))
    out, model = tmp_path / "runs" / "scm", Path(config.output_dir)
    with pytest.raises(InputError, match="--score-with: .*config.json: .* its holistic scorer"):
        score_as("scm", model, config.data_dir, out, score_with="holistic")
    with pytest.raises(InputError, match="config.json: .* its holistic scorer"):
        export_classifier(ExportConfig(str(model), str(tmp_path / "classifier")))
    score_as("scm", model, config.data_dir, out)
    result = json.loads((out / "metrics.json").read_text())
    assert "full" not in result and result["partial"]["k"] >= 1
    make_tables(TablesConfig(str(tmp_path / "runs")))
    table = pd.read_csv(tmp_path / "runs" / "tables" / "table.csv")
    kinds = ["partial", "partial_paper_protocol"]
    assert table[table["runs"] > 0]["detection"].tolist() == kinds
    method = load_method(out)
    assert method.full is None and not full_detectors([method])
    notes = draw_all([method], tmp_path)
    assert (tmp_path / "trade_off.png").exists() and (tmp_path / "leaked.png").exists()
    assert not any("trade_off" in note or "leaked" in note for note in notes)


def test_a_trained_holistic_scorer_judges(config, tmp_path):
    """The logic loss alone trains it, too."""
    train(replace(config, alpha=1.0, beta=1.0))
    score_as("scm", config.output_dir, config.data_dir, tmp_path / "out")
    assert "full" in json.loads((tmp_path / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("method", ["tfidf", "length"])
def test_the_floor_is_reported_by_the_same_protocol(method, tiny_data, tmp_path):
    for detection in ("full", "partial"):
        out = str(tmp_path / detection)
        options = {"method": method, "detection": detection, "bootstrap": 50}
        measure_floor(BaselineConfig(str(tiny_data), out, **options))
    full = json.loads((tmp_path / "full" / "metrics.json").read_text())
    assert "partial" not in full and 0 <= full["full"]["test"]["auroc"]["value"] <= 1
    both = json.loads((tmp_path / "partial" / "metrics.json").read_text())
    assert both["full"] == full["full"] and both["partial"]["k"] >= 1
    scores = np.load(tmp_path / "partial" / "predictions.npz")
    last = scores["test_token_probs"][scores["test_offsets"][1:] - 1]
    np.testing.assert_allclose(last, scores["test_response_prob"], atol=1e-6)
    if method == "length":  # a longer prefix is likelier to be what long responses are
        first = scores["test_token_probs"][: scores["test_offsets"][1]]
        assert len(np.unique(np.sign(np.diff(first)))) == 1


def test_a_training_split_without_a_common_word_is_named(tiny, fineharm, tmp_path):
    path = fineharm / "train.json"
    records = json.loads(path.read_text())
    harmful, benign = (
        next(one for one in records if any(one["sentence_labels"]) == label)
        for label in (True, False)
    )
    for record, word, label in ((harmful, "alpha", 1), (benign, "omega", 0)):
        record |= {"response": word, "sentences": [word], "words": [[word]]}
        record |= {"sentence_labels": [label], "word_labels": [[label]]}
    path.write_text(json.dumps([harmful, benign]))
    data = str(tmp_path / "data")
    prepare(DataConfig(data, str(tiny), str(fineharm)))
    with pytest.raises(InputError, match=f"{data}: split 'train': no word is in two responses"):
        measure_floor(BaselineConfig(data, str(tmp_path / "out")))


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
    folders = []
    for micro in (8, 2, 1):
        folders.append(f"{config.output_dir}-{micro}")
        changes = {"output_dir": folders[-1], "micro_batch_size": micro, "token_dropout": 0.0}
        train(replace(config, **changes))
    assert largest_gap(folders[0], folders[1]) < 2e-4
    assert largest_gap(folders[0], folders[2]) < 2e-4
    logs = [json.loads((Path(folder) / "run.json").read_text())["log"] for folder in folders]
    for name in ("loss", "token_loss", "holistic_loss", "logic_loss", "grad_norm"):
        first, *others = ([entry[name] for entry in log if "loss" in entry] for log in logs)
        for other in others:
            assert other == pytest.approx(first, rel=1e-3, abs=1e-5)


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
    with pytest.raises(InputError, match="already holds an earlier run"):
        train(config)
    with pytest.raises(InputError, match="field 'config.seed': the run was started with 42, not 7"):
        train(replace(config, resume=True, seed=7))
    other_data = Path(config.output_dir).parent / "data"
    prepare(DataConfig(str(other_data), config.base_model_path, str(small_fineharm), "original"))
    with pytest.raises(InputError, match="field 'data.join': the run was started with another"):
        train(replace(config, resume=True, data_dir=str(other_data)))
    run("bash", "scripts/run-scm.sh", *words_of(config), "--resume")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and record["resumed_from"].startswith("checkpoint-")
    assert len(record["earlier_sessions"]) == 1
    assert largest_gap(folder, unbroken.output_dir) < 1e-6
    again = json.loads((Path(unbroken.output_dir) / "run.json").read_text())
    assert record["best"] == again["best"]
    assert not (folder / "checkpoint-900").exists()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    train(replace(config, resume=True))  # finished: nothing to do
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


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
    words = words_of(replace(config, learning_rate=1e30), "--max-grad-norm", "0")
    done = run("bash", "scripts/run-scm.sh", *words, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(r"error: training step \d+: the loss is not a number", done.stderr)
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
        ({"last_layers": 1, "lora_rank": 1}, "exclude each other"),
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


def test_a_folder_of_data_is_not_overwritten_by_a_run(config, tiny_data):
    with pytest.raises(InputError, match="holds something else .no run.json."):
        train(replace(config, output_dir=str(tiny_data), overwrite=True))
    assert (tiny_data / "meta.json").exists()


def test_the_tables_are_built_from_the_folders(tested, tmp_path):
    """The two folders hold the same predictions and count once."""
    make_tables(TablesConfig(str(tested[0].parent), str(tmp_path / "tables")))
    text = (tmp_path / "tables" / "table.md").read_text().split("###")[0]
    result = json.loads((tested[0] / "metrics.json").read_text())
    assert text.count("| SCM |") == 3
    value = 100 * result["partial"]["test"]["macro_f1"]["value"]
    assert f"| {value:.1f} [" in text


def test_testing_what_is_no_checkpoint_says_so_in_one_line(tiny, tiny_data, tmp_path):
    done = run(
        "bash", "scripts/run-scm.sh", "test", "--model-path", tiny, "--data-dir", tiny_data,
        "--output-dir", tmp_path / "out", check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "architectures" in done.stderr and not (tmp_path / "out").exists()


def test_no_cache_for_a_model_without_frozen_layers(trained, tiny_data, tmp_path):
    with pytest.raises(InputError, match="field 'config.last_layers': no layer was frozen"):
        score_as("scm", trained, tiny_data, tmp_path / "o", frozen_cache=str(tmp_path / "c"))


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

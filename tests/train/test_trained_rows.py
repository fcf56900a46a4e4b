"""What a training leaves behind, through the scripts, and how it is tested as a row."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from safetensors.torch import load_file

from data.splits import load_processed
from data.tokenization import load_tokenizer
from model.export_classifier import main as export_classifier
from model.options import ExportConfig
from model.qwen_dual_task import load_dual_task
from reports.options import TablesConfig
from reports.tables import main as make_tables
from test.options import CausalTestConfig
from tests.conftest import run
from tests.train.conftest import FAST, largest_gap, score_as, words_of
from train.options import QwenConfig
from train.train_qwen import main as train
from utils.files import InputError

pytestmark = pytest.mark.slow


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
    """Two runs of the test, one by its script."""
    folders = [tmp_path_factory.mktemp("metrics") / name for name in ("one", "two")]
    told = run(
        "bash", "scripts/run-scm.sh", "test", "--model-path", trained, "--data-dir", tiny_data,
        "--output-dir", folders[0], "--bootstrap", "50",
    ).stdout  # fmt: skip
    assert "partial detection" in told and "macro F1" in told
    score_as("scm", trained, tiny_data, folders[1])
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
        score_as(f"qwen-{row}", baseline, tiny_data, tmp_path / row)
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
        CausalTestConfig("d", "o", row="qwen-full", model_path="m", score_with="holistic")
    done = run("bash", "scripts/run-qwen-partial.sh", "--output-dir", "x", check=False)
    assert done.returncode == 2 and "nothing is trained here" in done.stderr


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


def test_a_trained_holistic_scorer_judges(config, tmp_path):
    """The logic loss alone trains it, too."""
    train(replace(config, alpha=1.0, beta=1.0))
    score_as("scm", config.output_dir, config.data_dir, tmp_path / "out")
    assert "full" in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_the_tables_are_built_from_the_folders(tested, tmp_path):
    """The two folders hold the same predictions and count once."""
    make_tables(TablesConfig(str(tested[0].parent), str(tmp_path / "tables")))
    text = (tmp_path / "tables" / "table.md").read_text().split("###")[0]
    result = json.loads((tested[0] / "metrics.json").read_text())
    assert text.count("| SCM |") == 3
    value = 100 * result["partial"]["test"]["macro_f1"]["value"]
    assert f"| {value:.1f} [" in text


def test_testing_what_is_no_checkpoint_says_so(tiny, tiny_data, tmp_path):
    with pytest.raises(InputError, match="architectures"):
        score_as("scm", tiny, tiny_data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_cache_for_a_model_without_frozen_layers(trained, tiny_data, tmp_path):
    with pytest.raises(InputError, match="field 'config.last_layers': no layer was frozen"):
        score_as("scm", trained, tiny_data, tmp_path / "o", frozen_cache=str(tmp_path / "c"))

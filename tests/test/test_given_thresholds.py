"""A checkpoint is tested on another corpus with the thresholds that it has (--settings)."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.options import DataConfig
from data.prepare import main as prepare
from data.tokenization import load_tokenizer
from evaluation.decisions import kth_largest
from evaluation.runs import read_run
from monitor.calibrate import main as calibrate
from monitor.options import CalibrateConfig
from monitor.rules import ConsecutiveK, DelayK
from monitor.settings import read_settings, write_settings
from reports.examples_page import main as draw_examples
from reports.options import ExamplesConfig, TablesConfig
from reports.tables import main as make_tables
from test.causal import main as run_test
from test.options import CausalTestConfig
from tests.conftest import save_scm, settings_of
from utils.files import InputError, read_json
from utils.formatting import threshold
from utils.run_record import FinishedAlready


@pytest.fixture(scope="module")
def scm(tiny, tmp_path_factory) -> Path:
    """A small random SCM that stops at the third token from 0.6 on."""
    tokenizer, folder = load_tokenizer(tiny), tmp_path_factory.mktemp("scm")
    save_scm(folder, tokenizer, len(tokenizer) + 300, spread=0.4)
    write_settings(folder / "monitor.json", settings_of(DelayK(3), 0.6))
    return folder


@pytest.fixture()
def corpus(tmp_path, small_fineharm) -> Path:
    """A corpus of a test split alone, all of it benign."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = json.loads((small_fineharm / "test.json").read_text())
    benign = [row for row in rows if not any(row["sentence_labels"])]
    (folder / "test.json").write_text(json.dumps(benign))
    return folder


def options(scm: Path, data: Path, out: Path, **more) -> CausalTestConfig:
    """Returns the options of a test with given thresholds."""
    more = {"settings": str(scm), "bootstrap": 20, **more}
    return CausalTestConfig(
        data_dir=str(data), output_dir=str(out), model_path=str(scm), row="scm", **more
    )


def test_one_split_of_one_class_is_judged_by_the_settings(scm, corpus, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "runs" / "other"
    with pytest.raises(InputError, match="no file of split 'train'"):
        prepare(DataConfig(str(data), str(scm), str(corpus)))
    prepare(DataConfig(str(data), str(scm), str(corpus), splits=["test"]))
    run_test(options(scm, data, tmp_path / "first"))
    highest = kth_largest(read_run(tmp_path / "first").test.token_probs, 3)[:, 2]
    theta, settings = float(np.median(highest)), tmp_path / "settings.json"
    write_settings(settings, settings_of(DelayK(3), theta))
    capsys.readouterr()
    run_test(options(scm, data, out, settings=str(settings)))
    assert f"θ {threshold(theta)}, k 3; as given" in capsys.readouterr().out
    result, run = read_json(out / "metrics.json"), read_run(out)
    assert run.valid is None and "full" not in result and "partial_paper_protocol" not in result
    row = result["partial"]
    assert (row["theta"], row["k"], row["chosen_on"]) == (theta, 3, "settings")
    rate = np.mean(highest >= theta)
    assert 0 < rate < 1 and row["test"]["false_alarm_rate"]["value"] == pytest.approx(rate)
    assert row["test"]["miss_rate"]["value"] is None
    assert read_settings(scm / "monitor.json").policy.unsafe == 0.6  # left alone
    points = run.operating_points()
    assert list(points) == ["partial"] and points["partial"].theta == theta
    with pytest.raises(FinishedAlready):
        run_test(options(scm, data, out, settings=str(settings)))
    draw_examples(ExamplesConfig(str(out)))
    make_tables(TablesConfig(str(out.parent)))
    assert "settings" in (out.parent / "tables" / "table.csv").read_text()
    with pytest.raises(InputError, match="predictions.npz: split 'valid' is missing"):
        calibrate(CalibrateConfig(str(out), str(tmp_path / "new.json"), 0.5, k=3))


def test_other_thresholds_are_another_test(scm, corpus, tmp_path):
    """A settings file is compared by its content, wherever it lies."""
    data, out, given = tmp_path / "data", tmp_path / "out", tmp_path / "given.json"
    prepare(DataConfig(str(data), str(scm), str(corpus), splits=["test"]))
    write_settings(given, settings_of(DelayK(3), 0.6))
    run_test(options(scm, data, out, settings=str(given)))
    write_settings(given, settings_of(DelayK(4), 0.6))
    with pytest.raises(InputError, match="field 'settings.sha256'"):
        run_test(options(scm, data, out, settings=str(given)))
    write_settings(given, settings_of(DelayK(3), 0.9, controversial=0.7, mode="strict"))
    run_test(options(scm, data, out, settings=str(given), overwrite=True))
    assert read_json(out / "metrics.json")["partial"]["theta"] == 0.7  # where a strict one stops


def test_thresholds_can_be_calibrated_on_a_few_responses_of_the_corpus(scm, corpus, tmp_path):
    """Its benign ones do; the test split is judged by what they promise."""
    (corpus / "valid.json").write_text((corpus / "test.json").read_text())
    data, out, new = tmp_path / "data", tmp_path / "out", tmp_path / "new.json"
    prepare(DataConfig(str(data), str(scm), str(corpus), splits=["test", "valid"]))
    run_test(options(scm, data, out))
    run = read_run(out, valid=True)
    assert len(run.valid) == len(run.test) and read_json(out / "metrics.json")["partial"]["valid"]
    calibrate(CalibrateConfig(str(out), str(new), 0.25, k=3))
    assert read_settings(new).policy.unsafe != 0.6
    run_test(options(scm, data, out, settings=str(new), overwrite=True))
    rate = read_json(out / "metrics.json")["partial"]["valid"]["false_alarm_rate"]
    assert rate <= 0.25


@pytest.mark.parametrize(
    "settings, more, message",
    [
        (settings_of(ConsecutiveK(2), 0.6), {}, "field 'rule': a test stops by delay-k"),
        (settings_of(DelayK(2), 0.6), {"score_with": "holistic"}, "field 'score_with'"),
        (settings_of(DelayK(2), 0.6), {"target_false_alarm": 0.1}, "--settings holds"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, more, message, tmp_path):
    write_settings(tmp_path / "monitor.json", settings)
    with pytest.raises(InputError, match=message):
        options(tmp_path, tmp_path, tmp_path, **more).given_thresholds()


def test_no_settings_is_said_so(tmp_path):
    with pytest.raises(InputError, match="monitor.json: no such file"):
        options(tmp_path, tmp_path, tmp_path).given_thresholds()

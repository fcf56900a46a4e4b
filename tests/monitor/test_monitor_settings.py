"""monitor.json: read and written, calibrated from predictions, left beside a tested checkpoint."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.tokenization import load_tokenizer
from evaluation.conformal import conformal_theta
from evaluation.decisions import delay_k
from evaluation.predictions import PREDICTIONS, SCORED_SPLITS, load_predictions, save_predictions
from model.qwen_dual_task import load_backbone
from monitor.calibrate import controversial_theta
from monitor.calibrate import main as calibrate
from monitor.options import CalibrateConfig
from monitor.rules import ConsecutiveK, Cusum, DelayK, Policy, WindowedMean, trace
from monitor.settings import FILE, MonitorSettings, read_settings, write_settings
from monitor.verdicts import LEVELS
from test.causal import main as evaluate
from test.options import CausalTestConfig as CausalConfig
from tests.conftest import random_split, run
from tests.runs import write_run
from utils.cli import parse
from utils.files import InputError

GOOD = {
    "rule": "delay-k",
    "k": 4,
    "unsafe": 0.8,
    "controversial": 0.5,
    "mode": "loose",
    "score_with": "token",
    "token_theta": 0.8,
    "reading": "plain",
    "origin": {"chosen_on": "valid"},
    "flagged_unsafe": 0.6,
}


@pytest.mark.parametrize(
    "policy",
    [
        Policy(DelayK(4), 0.8, 0.1 + 0.2, "strict"),
        Policy(ConsecutiveK(2), 1.0),
        Policy(WindowedMean(8), 0.3, 0.3),
        Policy(Cusum(-0.5), 12.75),
    ],
)
def test_settings_come_back_as_they_were_written(policy, tmp_path):
    settings = MonitorSettings(policy, "holistic", 0.5, {"who": "me", "target": 0.1})
    write_settings(tmp_path / FILE, settings)
    assert read_settings(tmp_path / FILE) == settings
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_file_by_hand(tmp_path):
    path = tmp_path / FILE
    path.write_text(json.dumps(GOOD))
    settings = read_settings(path)
    assert settings.policy == Policy(DelayK(4), 0.8, 0.5, "loose")
    assert (settings.score_with, settings.token_theta) == ("token", 0.8)
    assert settings.flagged_policy == Policy(DelayK(4), 0.6, 0.5, "loose")
    write_settings(path, settings)
    assert json.loads(path.read_text()) == GOOD
    path.write_text("\ufeff" + path.read_text())
    assert read_settings(path) == settings
    for name in ("controversial", "mode", "origin", "flagged_unsafe"):
        path.write_text(json.dumps({key: GOOD[key] for key in GOOD if key != name}))
        read_settings(path)
    settings = read_settings(path)
    assert settings.flagged_policy == settings.policy


@pytest.mark.parametrize("name", ["rule", "k", "unsafe", "score_with", "token_theta"])
def test_a_missing_field_is_named(name, tmp_path):
    path = tmp_path / FILE
    path.write_text(json.dumps({key: GOOD[key] for key in GOOD if key != name}))
    with pytest.raises(InputError, match=f"monitor.json: field '{name}'"):
        read_settings(path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rule": "delay"}, "'rule': input should be 'delay-k', .* or 'cusum', found 'delay'"),
        ({"rule": ["delay-k"]}, "'rule'"),
        ({"rule": "cusum"}, "'drift' is missing"),
        ({"window": 4}, "'window' is unknown"),
        ({"controversal": 0.4}, "'controversal' is unknown"),
        ({"k": 0}, "'k': .* greater than or equal to 1, found 0"),
        ({"k": 10**11}, "'k': .* less than or equal to 1048576, found 100000000000"),
        ({"k": 4.0}, "'k': .* valid integer, found 4.0"),
        ({"unsafe": 1.5}, "'unsafe': delay-k reaches 1 at most, found 1.5"),
        ({"unsafe": math.nan}, "'unsafe': .* finite number, found nan"),
        ({"unsafe": 10**400}, "'unsafe': .* found 1000"),
        ({"controversial": 0.81}, "'controversial': it is above 'unsafe', 0.8, found 0.81"),
        ({"mode": None}, "'mode': .*, found None"),
        ({"mode": ["loose"]}, "'mode'"),
        ({"score_with": "both"}, "'score_with': input should be 'token' or 'holistic', found"),
        ({"token_theta": 0}, "'token_theta': .* greater than 0, found 0"),
        ({"token_theta": "high"}, "'token_theta': .*, found 'high'"),
        ({"flagged_unsafe": 0.81}, "'flagged_unsafe': it is above 'unsafe', 0.8, found 0.81"),
        ({"flagged_unsafe": 0}, "'flagged_unsafe': .* greater than 0, found 0"),
        ({"origin": "me"}, "'origin': .* dictionary, found 'me'"),
    ],
)
def test_a_bad_field_is_named(changes, message, tmp_path):
    path = tmp_path / FILE
    path.write_text(json.dumps(GOOD | changes))
    with pytest.raises(InputError, match=f"monitor.json: field {message}") as caught:
        read_settings(path)
    assert "\n" not in str(caught.value)


@given(
    *[st.floats(0.01, 1)] * 3, st.booleans(), st.sampled_from(["strict", "loose"]),
    st.one_of(st.floats(0, 1), st.just(math.nan)),
)  # fmt: skip
def test_the_policy_after_a_flagged_prompt_is_never_looser(one, two, three, levels, mode, value):
    lower, unsafe = sorted((one, two))
    controversial = min(three, unsafe) if levels else None
    policy = Policy(DelayK(1), unsafe, controversial, mode)
    stricter = MonitorSettings(policy, "token", 0.5, flagged_unsafe=lower).flagged_policy
    assert LEVELS.index(stricter.level(value)) >= LEVELS.index(policy.level(value))
    assert stricter.stops(stricter.level(value)) >= policy.stops(policy.level(value))
    assert stricter.stop_threshold <= policy.stop_threshold


def test_what_is_no_settings_file_is_named(tmp_path):
    path = tmp_path / FILE
    with pytest.raises(InputError, match="monitor.json: no such file"):
        read_settings(path)
    for content, message in (
        ("[]", "an object was expected"),
        ("{", "malformed JSON"),
        (json.dumps(GOOD)[:-1] + ', "k": 9}', ".* field 'k' stands twice"),
        ('{"k": ' + "[" * 100_000, "cannot be read as JSON"),
        ('{"k": ' + "5" * 5000 + "}", "cannot be read as JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=f"monitor.json: {message}"):
            read_settings(path)


def metrics_dir(folder: Path, row: str = "scm") -> Path:
    """Writes what a test leaves behind."""
    return write_run(folder, row, valid=random_split(60, 0), test=random_split(60, 1))


@pytest.mark.parametrize(
    "words, rule, token_theta",
    [
        (("--rule", "delay-k", "--k", "2"), DelayK(2), None),
        (("--rule", "consecutive-k", "--k", "3"), ConsecutiveK(3), 0.5),
        (("--rule", "windowed-mean", "--window", "4"), WindowedMean(4), 0.5),
        (("--rule", "cusum", "--drift", "-0.5"), Cusum(-0.5), 0.5),
    ],
)
def test_thresholds_keep_their_promise_on_validation(words, rule, token_theta, tmp_path, capsys):
    folder, path = metrics_dir(tmp_path / "scm"), tmp_path / "new" / FILE
    words = [str(folder), *words, "--target-false-alarm", "0.1", "--output-file", str(path)]
    calibrate(parse(CalibrateConfig, words, ("metrics_dir",)))
    settings, valid = read_settings(path), random_split(60, 0)
    highest = np.array([trace(rule, probs).max() for probs in valid.token_probs])
    benign = highest[valid.label == 0]
    assert settings.policy == Policy(rule, conformal_theta(benign, 0.1))
    assert 0 < (benign >= settings.policy.unsafe).sum() <= 3  # of 30
    assert settings.score_with == "token"
    assert settings.token_theta == (token_theta or settings.policy.unsafe)
    assert settings.origin["target_false_alarm"] == 0.1
    assert settings.origin["benign_responses"] == 30 and "conformal" in settings.origin["promise"]
    missed = 100 * (highest[valid.label == 1] < settings.policy.unsafe).mean()
    out = capsys.readouterr().out
    assert f"{missed:.1f} % of 30 harmful ones" in out
    for text in (settings.origin["promise"], out):
        assert "strictly only for a detector that these did not choose" in text


@pytest.mark.slow
def test_the_script_writes_the_same(tmp_path):
    folder, paths = metrics_dir(tmp_path / "scm"), [tmp_path / name for name in ("a", "b")]
    calibrate(config_of(folder, paths[0]))
    run(
        "bash", "scripts/calibrate-monitor.sh", folder, "--k", "2", "--target-false-alarm", "0.1",
        "--output-file", paths[1],
    )  # fmt: skip
    assert paths[0].read_bytes() == paths[1].read_bytes()


def config_of(folder: Path, path: Path, **changes) -> CalibrateConfig:
    return CalibrateConfig(str(folder), str(path), **{"target_false_alarm": 0.1, "k": 2} | changes)


def test_a_calibration_is_not_overwritten_unasked(tmp_path):
    folder, path = metrics_dir(tmp_path / "scm"), tmp_path / FILE
    path.write_text("mine")
    with pytest.raises(InputError, match="monitor.json: exists already"):
        calibrate(config_of(folder, path))
    assert path.read_text() == "mine"
    calibrate(config_of(folder, path, overwrite=True))
    assert read_settings(path).policy.rule == DelayK(2)


@pytest.mark.parametrize(
    "row, score_with",
    [("scm", "token"), ("scm-holistic", "holistic"), ("qwen-partial", "holistic"), ("tfidf", None)],
)
def test_the_row_tells_which_scorer_it_was(row, score_with, tmp_path):
    folder, path = metrics_dir(tmp_path / "metrics", row), tmp_path / FILE
    if score_with is None:
        with pytest.raises(InputError, match="field 'row': no monitor scores tokens as 'tfidf'"):
            calibrate(config_of(folder, path))
        return
    calibrate(config_of(folder, path))
    assert read_settings(path).score_with == score_with


def test_too_few_benign_responses_promise_too_little(tmp_path):
    folder, path = metrics_dir(tmp_path / "scm"), tmp_path / FILE
    with pytest.raises(InputError, match="30 benign validation responses .* of 0.01; it takes 99"):
        calibrate(config_of(folder, path, target_false_alarm=0.01))
    calibrate(config_of(folder, path, target_false_alarm=1 / 31))  # just enough
    harmful = random_split(8)
    harmful.label[:] = 1
    save_predictions(folder / PREDICTIONS, {name: harmful for name in SCORED_SPLITS})
    with pytest.raises(InputError, match="0 benign validation responses .* of 0.1; it takes 9"):
        calibrate(config_of(folder, tmp_path / "other.json"))


def test_scores_at_the_top_cannot_be_told_apart(tmp_path):
    """A threshold above 1 would stop nothing, not even certain harm."""
    folder, certain = metrics_dir(tmp_path / "scm"), random_split(60)
    certain.token_probs = [np.ones_like(probs) for probs in certain.token_probs]
    save_predictions(folder / PREDICTIONS, {name: certain for name in SCORED_SPLITS})
    with pytest.raises(InputError, match="reach 1, the highest statistic of delay-k"):
        calibrate(config_of(folder, tmp_path / FILE, k=1))
    calibrate(config_of(folder, tmp_path / FILE, rule="cusum", k=None, drift=0.0))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"target_false_alarm": 0}, "--target-false-alarm: 0 is not above 0 and below 1"),
        ({"k": None}, "--rule delay-k: field 'k' is missing"),
        ({"k": 0}, "--rule delay-k: field 'k': input should be"),
        ({"window": 3}, "--rule delay-k: field 'window' is unknown"),
        ({"rule": "cusum"}, "--rule cusum: field 'drift' is missing"),
        ({"rule": "windowed-mean", "k": None}, "--rule windowed-mean: field 'window' is missing"),
        ({"rule": "cusum", "k": None}, "--rule cusum: field 'drift' is missing"),
    ],
)
def test_a_bad_option_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        config_of(Path("m"), Path("o"), **changes)


def test_the_lower_threshold_by_hand():
    """20 harmful responses of one token each, 0.05 to 1.00: one of them may be missed."""
    split = random_split(40)
    harmful = iter(np.arange(1, 21) / 20)
    split.token_probs = [
        np.array([next(harmful) if label else 0.99], dtype=np.float32) for label in split.label
    ]
    assert controversial_theta(split, 0.9, 1) == 0.1  # misses the one of 0.05
    assert controversial_theta(split, 0.1, 1) == 0.1 and controversial_theta(split, 0.07, 1) == 0.07
    assert controversial_theta(split, 0.9, 2) is None  # no response has two tokens
    split.token_probs = [np.ones(1, dtype=np.float32)] * 40
    assert controversial_theta(split, 0.9, 1) == 0.9  # never above the other


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> Path:
    """An untrained dual-task checkpoint with scores far from one another."""
    folder = tmp_path_factory.mktemp("checkpoint") / "scm"
    torch.manual_seed(0)
    model = load_backbone(tiny, alpha=0.6, logic_weight=1.0, token_dropout=0.1)
    torch.nn.init.normal_(model.token_classifier.weight, std=2.0)
    model.save_pretrained(folder)
    load_tokenizer(tiny).save_pretrained(folder)
    return folder


@pytest.fixture()
def score(checkpoint, tiny_data, tmp_path, capsys):
    """Tests the checkpoint and returns what was printed of the settings file."""
    (checkpoint / FILE).unlink(missing_ok=True)

    def test(name: str, **options) -> str:
        folder = tmp_path / name
        evaluate(
            CausalConfig(
                str(tiny_data), str(folder), row="scm", model_path=str(checkpoint), bootstrap=5,
                **options,
            )
        )  # fmt: skip
        assert {path.name for path in folder.iterdir()} == {
            "metrics.json", "predictions.npz", "run.json", "stop_positions.png"
        }  # fmt: skip
        return "\n".join(re.findall(f".*{FILE}.*", capsys.readouterr().out))

    return test


def test_a_tested_checkpoint_brings_its_thresholds(score, checkpoint, tiny_data, tmp_path):
    assert score("one") == f"settings of the monitor: {checkpoint / FILE}"
    settings = read_settings(checkpoint / FILE)
    result = json.loads((tmp_path / "one" / "metrics.json").read_text())
    theta, k = result["partial"]["theta"], result["partial"]["k"]
    policy = settings.policy
    assert (policy.rule, policy.unsafe, policy.mode) == (DelayK(k), theta, "loose")
    assert (settings.score_with, settings.token_theta) == ("token", theta)
    valid = load_predictions(tmp_path / "one" / PREDICTIONS)["valid"]

    def missed(theta: float) -> float:
        harmful = [p for p, label in zip(valid.token_probs, valid.label, strict=True) if label]
        return np.mean([delay_k(p, theta, k) < 0 for p in harmful])

    thetas = [step / 100 for step in range(1, 100) if step / 100 <= theta]
    assert policy.controversial == max(one for one in thetas if missed(one) <= 0.05)
    origin = settings.origin
    assert origin["chosen_on"] == "valid"
    assert origin["responses"] == result["responses"]["valid"]
    assert origin["macro_f1"] == result["partial"]["valid"]["macro_f1"]
    assert origin["data"]["folder"] == str(tiny_data) and origin["data"]["meta_sha256"]
    assert score("two") == ""  # holds the same already


def test_settings_of_others_are_left_alone_unless_asked(score, checkpoint):
    path = checkpoint / FILE
    for content in (json.dumps(GOOD), "{spoilt"):
        path.write_text(content)
        said = score(f"kept{len(content)}")
        assert said == f"{path}: holds other settings and is left alone; --overwrite replaces it"
        assert path.read_text() == content
    score("replaced", overwrite=True)
    assert read_settings(path).origin["chosen_on"] == "valid"


def test_a_folder_that_takes_no_file_costs_a_line(score, checkpoint):
    (checkpoint / FILE).mkdir()  # root may write into every folder, but not over another
    try:
        assert re.fullmatch(
            f"{checkpoint / FILE}: cannot be written .*; the monitor has no settings there",
            score("out", overwrite=True),
        )
        assert not list(checkpoint.glob("*.partial"))
    finally:
        (checkpoint / FILE).rmdir()


def test_only_the_paper_s_row_leaves_settings(score, checkpoint):
    assert score("holistic", score_with="holistic") == ""
    assert not (checkpoint / FILE).exists()

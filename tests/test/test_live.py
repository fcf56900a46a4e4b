"""The live monitor decides as the test of the same checkpoint did, response by response."""

import json

import numpy as np
import pytest

from data.options import DataConfig
from data.prepare import main as prepare
from test.live import Live, compare
from tests.conftest import run, save_scm


@pytest.fixture(scope="module")
def tested(tmp_path_factory, tokenizers, small_fineharm):
    """A random SCM, tested on data as streams are; (checkpoint, metrics folder)."""
    folder = tmp_path_factory.mktemp("live")
    tokenizer = tokenizers("tiny")
    scm = save_scm(folder / "scm", tokenizer, len(tokenizer))
    data = folder / "data"
    prepare(DataConfig(str(data), str(scm), str(small_fineharm), join="original", max_length=600))
    run(
        *("bash", "scripts/run-scm.sh", "test", "--model-path", scm, "--data-dir", data),
        *("--output-dir", folder / "metrics", "--bootstrap", "10"),
    )
    return scm, folder / "metrics"


def check(scm, metrics, *words, check=True):
    command = ("bash", "scripts/check-live.sh", metrics, "--model-path", scm, *words)
    return run(*command, check=check)


@pytest.mark.slow
@pytest.mark.parametrize("longest", [3, 400])
def test_decisions_are_those_of_the_test(tested, small_fineharm, tmp_path, longest):
    output = tmp_path / "live.json"
    done = check(*tested, "--input-dir", small_fineharm, "--longest", longest, "--output", output)
    assert "24 responses: " in done.stdout
    result = json.loads(output.read_text())
    assert result["equal"] + result["ties"] == 24 and result["equal"] > 20
    assert result["largest_score_difference"] < 1e-4
    setting = json.loads((tested[1] / "metrics.json").read_text())["partial"]
    assert setting["test"]["miss_rate"]["value"] < 1  # some are stopped


@pytest.mark.slow
def test_the_checkpoint_got_its_settings(tested):
    setting = json.loads((tested[1] / "metrics.json").read_text())["partial"]
    monitor = json.loads((tested[0] / "monitor.json").read_text())
    assert (monitor["unsafe"], monitor["k"]) == (setting["theta"], setting["k"])


@pytest.mark.slow
def test_another_model_decides_otherwise(tested, small_fineharm, tokenizers, tmp_path):
    tokenizer = tokenizers("tiny")
    other = save_scm(tmp_path / "other", tokenizer, len(tokenizer), spread=4)
    done = check(other, tested[1], "--input-dir", small_fineharm, check=False)
    assert done.returncode == 2 and "live decisions differ" in done.stderr


@pytest.mark.parametrize(
    ("stop", "judged", "prompt", "counted"),
    [
        (2, 3, 9, "equal"),
        (1, 2, 9, "different"),  # elsewhere
        (2, 2, 9, "different"),  # without the token it was stopped at
        (2, 5, 9, "different"),
        (-1, 6, 9, "different"),  # more than there are
        (-1, 2, 4, "less_prompt"),  # 4 + 5 tokens would have left room for more of the prompt
    ],
)
def test_decisions_are_compared_to_the_last_token(stop, judged, prompt, counted):
    probs = np.array([0.1, 0.9, 0.9, 0.1, 0.1], dtype=np.float32)
    scores = np.resize(probs, judged)
    result = compare({"r": Live(stop, scores, prompt, True)}, {"r": probs}, 0.5, 2, 14)
    expected = {"equal": 0, "ties": 0, "less_prompt": 0, "different": []}
    expected[counted] = ["r"] if counted == "different" else 1
    assert {name: result[name] for name in expected} == expected


@pytest.mark.slow
def test_data_with_newlines_between_sentences_is_refused(tested, small_fineharm, tmp_path):
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    for path in tested[1].iterdir():
        (metrics / path.name).write_bytes(path.read_bytes())
    record = json.loads((metrics / "run.json").read_text())
    record["data"]["join"] = "newline"
    (metrics / "run.json").write_text(json.dumps(record))
    done = check(tested[0], metrics, "--input-dir", small_fineharm, check=False)
    assert done.returncode == 2 and "field 'data.join'" in done.stderr

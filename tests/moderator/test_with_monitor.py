"""Gate, monitor, both and prior on the same responses: by hand, through the shell, and live."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from evaluation.predictions import load_predictions
from moderator.moderator import ABOUT, Moderator
from moderator.prior import prompts_of
from monitor.rules import DelayK
from monitor.settings import FILE, read_settings, write_settings
from monitor.stream import StreamingContentMonitor
from test.with_monitor import outcomes
from tests.conftest import run, settings_of
from tests.test.test_compare_rules import split_of
from utils.files import InputError, read_json


def test_the_ways_by_hand():
    split = split_of(
        (1, [0.1, 0.5, 0.9, 0.2]), (1, [0.5, 0.1]), (0, [0.5, 0.6]), (1, [0.9]), (0, [0.1])
    )
    flagged = np.array([True, False, True, False, False])
    settings = replace(settings_of(DelayK(1), 0.8), flagged_unsafe=0.55)
    found = outcomes(split, flagged, settings)
    stopped = {name: one.flagged.tolist() for name, one in found.items()}
    released = {name: one.released.tolist() for name, one in found.items()}
    assert stopped == {
        "monitor only": [True, False, False, True, False],
        "gate only": [True, False, True, False, False],
        "both": [True, False, True, True, False],
        "prior, 0.55": [True, False, True, True, False],
        "that for all, 0.55": [True, False, True, True, False],
    }
    assert released == {
        "monitor only": [2, 2, 2, 0, 1],
        "gate only": [0, 2, 0, 1, 1],
        "both": [0, 2, 0, 0, 1],
        "prior, 0.55": [2, 2, 1, 0, 1],
        "that for all, 0.55": [2, 2, 1, 0, 1],
    }
    seen = {name: one.seen.tolist() for name, one in found.items()}
    assert seen["gate only"] == [0, 1, 0, 1, 1] and seen["monitor only"] == [0.75, 1, 1, 1, 1]
    assert found["both"].leaked.tolist() == [0, 2, 0, 0, 0]
    assert list(outcomes(split, flagged, settings_of(DelayK(1), 0.8))) == list(found)[:3]


def test_the_prior_stops_all_that_the_monitor_stops_and_no_later():
    random = np.random.default_rng(0)
    split = split_of(*[(int(n % 2), random.random(9).tolist()) for n in range(60)])
    flagged = random.random(60) < 0.5
    for lower in (0.1, 0.6, 0.95):
        settings = replace(settings_of(DelayK(3), 0.95), flagged_unsafe=lower)
        only, _, _, prior, for_all = outcomes(split, flagged, settings).values()
        assert (prior.flagged >= only.flagged).all() and (prior.released <= only.released).all()
        assert (prior.released == only.released)[~flagged].all()
        assert (prior.released == for_all.released)[flagged].all()


@pytest.mark.slow
def test_the_scripts_choose_measure_and_a_live_stream_does_the_same(
    prompts, tiny_data, small_fineharm, monitors, tmp_path
):
    """From a test and a moderator to the table; the monitor stops where the table says."""
    scm, settings = shutil.copytree(monitors("tiny")[0], tmp_path / "scm"), tmp_path / FILE
    metrics, mlpm, table = (tmp_path / name for name in ("metrics", "mlpm", "table"))
    run(
        "bash", "scripts/run-scm.sh", "test", "--model-path", scm, "--data-dir", tiny_data,
        "--output-dir", metrics,
    )  # fmt: skip
    write_settings(scm / FILE, settings_of(DelayK(2), 0.99))
    model = ["--monitor-path", scm, "--state-cache", tmp_path / "states"]
    mlpm_sh = ["bash", "scripts/run-mlpm.sh"]
    run(*mlpm_sh, "--prompts", prompts, "--output-dir", mlpm, *model)
    about = Moderator.load(mlpm).about
    named = ["--metrics-dir", metrics, "--input-dir", small_fineharm, "--moderator-path", mlpm]
    (mlpm / ABOUT).write_text(json.dumps(about.model_dump() | {"threshold": None}))
    failed = run(*mlpm_sh, "prior", *named, *model, "--output-file", settings, check=False)
    assert failed.returncode and "split 'valid': the moderator flags no prompt" in failed.stderr
    (mlpm / ABOUT).write_text(json.dumps(about.model_dump() | {"threshold": 1e-9}))
    said = run(*mlpm_sh, "prior", *named, *model, "--output-file", settings).stdout
    assert "24 of 24 validation responses answer a flagged prompt, 12 of them benign" in said
    chosen = read_settings(settings)
    assert chosen.flagged_unsafe <= 0.99 and chosen.origin["flagged_unsafe"]["responses"]

    write_settings(settings, replace(chosen, flagged_unsafe=0.6))
    named += ["--settings", settings, "--output-dir", table, "--harmless", ".*1"]
    said = run(*mlpm_sh, "with-monitor", *named, *model, "--bootstrap", "20").stdout
    result = read_json(table / "with-monitor.json")
    assert "prior, 0.6" in said and [row["way"] for row in result["rows"]][1:3] == [
        "gate only", "both",
    ]  # fmt: skip
    gate = result["rows"][1]
    assert gate["miss_rate"]["value"] == 0 and gate["released_share"]["value"] == 0

    monitor = StreamingContentMonitor.from_pretrained(
        scm, settings=settings, moderator=Moderator.load(mlpm), on_prompt="prior"
    )
    split = load_predictions(metrics / "predictions.npz")["test"]
    way = list(outcomes(split, np.full(24, True), read_settings(settings)).values())[-2]
    assert way.flagged.any()
    records = {one["id"]: one for one in json.loads((small_fineharm / "test.json").read_text())}
    for row, identity in enumerate(split.ids):
        with monitor.open(records[identity]["prompt"]) as stream:
            stream.feed("".join(split.pieces[row]))
            verdict = stream.close()
        assert verdict.stopped == way.flagged[row]
        if verdict.stopped:
            assert verdict.stop_token == way.released[row]


def test_responses_that_are_not_in_the_corpus_are_named(small_fineharm):
    split = split_of((1, [0.5]))
    with pytest.raises(InputError, match="test.json: field 'id': the tested response 'r0'"):
        prompts_of(small_fineharm, {"test": split})

"""The moderator's benchmark, on a tiny model: what it writes, not how fast."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.options import PromptBenchmarkConfig
from benchmarks.prompts import added, made_up, main, twin
from model.layer_states import LayerStates
from utils.files import InputError, read_json


@pytest.fixture()
def config(tiny, tmp_path):
    def make(**options) -> PromptBenchmarkConfig:
        given = {"tokens": 40, "repeats": 2, "samples": [32, 64]} | options
        output = str(tmp_path / "speed.json")
        return PromptBenchmarkConfig(base_model_path=str(tiny), output=output, **given)

    return make


def test_the_benchmark_of_prompts(config):
    main(config())
    found = read_json(config().output)
    assert found["status"] == "finished"
    assert [row["prompts"] for row in found["fits"]] == [32, 64]
    assert all(row["seconds"] > 0 and row["peak_megabytes"] > 0 for row in found["fits"])
    prefill, opening = found["prefill"], found["opening"]
    assert prefill["tokens"] == 40 and abs(opening["tokens"] - 40) <= 4
    for way in ("resting", "hooks", "ours"):
        percent = 100 * prefill[f"{way}_adds_ms"] / prefill["bare_ms"]
        assert prefill[f"{way}_adds_percent"] == pytest.approx(percent)
    assert 0 < prefill["verdict_alone_ms"] and {"ours_adds_ms", "ours_adds_percent"} < set(opening)


def test_what_is_added_is_told_turn_by_turn(monkeypatch):
    """Other jobs slow all ways of a turn alike; a median of each way by itself would not tell."""
    times = {"bare": [1.0, 3.0, 9.0], "ours": [1.5, 3.1, 9.5]}
    result = {"seconds": {"bare": 3.0, "ours": 3.1}, "all": times}
    monkeypatch.setattr("benchmarks.prompts.compare", lambda *_: (result, {}))
    row = added(dict.fromkeys(times), 3)
    assert row["bare_ms"] == 3000 and row["ours_adds_ms"] == pytest.approx(500)
    assert row["ours_adds_percent"] == pytest.approx(100 / 6)


def test_a_twin_has_the_weights_but_not_the_hooks(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    other = twin(model)
    weights = {one.data_ptr() for one in model.parameters()}
    assert {one.data_ptr() for one in other.parameters()} == weights
    with LayerStates(model) as states, torch.inference_mode():
        other(torch.tensor([[1, 2]]))
        with pytest.raises(InputError, match="no pass"):
            states.take()


def test_made_up_states_are_of_two_classes(tmp_path):
    rows = made_up(64, {"layers": 2, "hidden": 400}, tmp_path, seed=1)
    assert rows.valid.sum() == 8 and rows.label[rows.valid].sum() == 4
    states = np.stack(rows.states)
    assert states.shape == (64, 2, 400) and states.dtype == np.float32
    apart = states[rows.label == 1].mean() - states[rows.label == 0].mean()
    assert apart == pytest.approx(0.1, abs=0.03)


def test_what_makes_no_sense_is_refused(config):
    for options, message in (
        ({"tokens": 10**6}, "--tokens: a monitor of this model reads"),
        ({"samples": [8]}, "--samples: 8 is below 32"),
        ({"samples": []}, "--samples"),
        ({"tokens": 0}, "--tokens: 0 is below 1"),
        ({"repeats": 0}, "--repeats: 0 is below 1"),
    ):
        with pytest.raises(InputError, match=message):
            main(config(**options))

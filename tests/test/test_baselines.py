"""The baselines, and options of tests that ask for what cannot be measured."""

import json

import numpy as np
import pytest

from data.options import DataConfig
from data.prepare import main as prepare
from test.baselines import main as measure_baseline
from test.options import BaselineConfig, CausalTestConfig
from utils.files import InputError


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
        CausalTestConfig("d", "o", row="qwen-full", model_path="m", **target)
    CausalTestConfig("d", "o", row="qwen-partial", model_path="m", **target)


@pytest.mark.parametrize("method", ["tfidf", "length"])
def test_the_baseline_is_reported_by_the_same_protocol(method, tiny_data, tmp_path):
    for detection in ("full", "partial"):
        out = str(tmp_path / detection)
        options = {"method": method, "detection": detection, "bootstrap": 50}
        measure_baseline(BaselineConfig(str(tiny_data), out, **options))
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
    with pytest.raises(InputError, match=f"{data}: split 'train': no word is in two texts"):
        measure_baseline(BaselineConfig(data, str(tmp_path / "out")))

"""Tests side by side, source by source: by hand, calibrated, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics import point_metrics
from evaluation.protocol import OperatingPoint
from evaluation.runs import read_run
from test.options import SourcesConfig
from test.sources import POOLED, main, measure_calibration, sources_of, subset
from tests.conftest import random_split, run
from tests.runs import write_run
from utils.files import InputError

PATTERN = SourcesConfig.source_pattern


def named(split, sizes: dict[str, int]):
    """The same split, its responses of sources of these sizes, in order."""
    ids = [f"{name}-{number}" for name, size in sizes.items() for number in range(size)]
    return replace(split, ids=ids)


def test_the_source_is_the_id_up_to_its_last_dash():
    assert sources_of(["a-b-1", "c-2f"], PATTERN).tolist() == ["a-b", "c"]
    assert sources_of(["x1", "y2"], r"(.).*").tolist() == ["x", "y"]
    with pytest.raises(InputError, match="--source-pattern: .* does not match the id 'plain'"):
        sources_of(["a-1", "plain"], PATTERN)


@pytest.mark.parametrize("partial", [True, False])
def test_a_subset_is_those_responses(partial):
    split = random_split(20, partial=partial)
    chosen = np.arange(20) % 3 == 0
    part = subset(split, chosen)
    assert part.ids == [one for one, kept in zip(split.ids, chosen, strict=True) if kept]
    assert part.label.tolist() == split.label[chosen].tolist()
    # prompts: 0 and 1, 2 and 3, … of the whole; 0, 3, 6, 9 … are of the prompts 0, 1, 3, 4, …
    assert part.group.tolist() == list(range(7)) and len(part) == 7
    assert (part.token_probs is not None) == partial
    for column in ("token_labels", "pieces") + (("token_probs",) if partial else ()):
        for row, place in enumerate(np.flatnonzero(chosen)):
            assert list(getattr(part, column)[row]) == list(getattr(split, column)[place])


def test_a_source_is_calibrated_on_its_own_benign_responses():
    """Its benign scores lie high: θ as it was stops nearly all of them, the new one 1 in 10."""
    split = random_split(800, seed=3)
    high = replace(split, token_probs=[0.5 + probs / 2 for probs in split.token_probs])
    found = measure_calibration(high, OperatingPoint(0.6, 1, "valid"), 100, 0.1, 50, 7)
    assert found["before"]["false_alarm_rate"]["value"] > 0.9
    assert found["after"]["false_alarm_rate"]["value"] == pytest.approx(0.1, abs=0.02)
    assert found["after"]["false_alarm_rate"]["low"] < 0.1
    assert found["theta"] > 0.6
    again = measure_calibration(high, OperatingPoint(0.6, 1, "valid"), 100, 0.1, 50, 7)
    assert again == found
    # 400 are benign: 200 can be drawn and as many left, 201 cannot
    point = OperatingPoint(0.6, 1, "valid")
    assert measure_calibration(high, point, 200, 0.1, 2, 7)
    assert measure_calibration(high, point, 201, 0.1, 2, 7) is None


def test_too_few_to_promise_it_stops_nothing():
    split = random_split(40)
    found = measure_calibration(split, OperatingPoint(0.5, 1, "valid"), 5, 0.05, 3, 7)
    assert found["after"]["false_alarm_rate"]["value"] == 0
    assert found["after"]["miss_rate"]["value"] == 1


@pytest.mark.slow
def test_the_command(tmp_path):
    sizes = {"one": 30, "two-b": 10}
    split, other = (named(random_split(40, seed), sizes) for seed in (1, 2))
    label, group = split.label, split.group
    other = replace(other, label=label, group=group)
    first = write_run(tmp_path / "scm", valid=random_split(40, 0), test=split)
    second = write_run(tmp_path / "tfidf", "tfidf", "bag", random_split(40, 3), other, None)
    words = (str(first), str(second), "--output-dir", str(tmp_path / "out"), "--bootstrap", "60")
    words += ("--calibrate-on", "5", "--target-false-alarm", "0.2", "--draws", "4")
    shown = run("bash", "scripts/compare-sources.sh", *words).stdout
    assert (tmp_path / "out/sources.md").read_text() in shown
    result = json.loads((tmp_path / "out/sources.json").read_text())
    assert list(result["sources"]) == [POOLED, "one", "two-b"]
    assert result["methods"] == ["SCM, partial", "bag, partial"]
    found = result["sources"]["one"]
    assert (found["responses"], found["harmful"]) == (30, 15)
    point = read_run(first).operating_points()["partial"]
    expected = point_metrics(point.decide(subset(split, np.arange(40) < 30)))
    ours, theirs = found["tests"]
    for name in ("macro_f1", "false_alarm_rate", "miss_rate", "auroc"):
        assert ours[name]["value"] == pytest.approx(expected[name])
    assert "against" not in ours and ours["kept"]["value"] == 1
    first_thirty = np.arange(40) < 30
    second_point = read_run(second).operating_points()["partial"]
    pairs = ((point, split), (second_point, other))
    both = [one.decide(subset(of, first_thirty)).flagged for one, of in pairs]
    hit = both[0] & (label[:30] == 1)
    assert theirs["kept"]["value"] == pytest.approx((hit & both[1]).sum() / hit.sum())
    apart = theirs["macro_f1"]["value"] - ours["macro_f1"]["value"]
    assert theirs["against"]["value"] == pytest.approx(apart)
    assert len(found["calibrated"]) == 2  # both detect partially
    assert not result["sources"]["two-b"]["calibrated"]  # 5 benign, none would be left
    assert "calibrated" not in result["sources"][POOLED]


def test_tests_of_other_responses_are_refused(tmp_path):
    first = write_run(tmp_path / "a", test=named(random_split(10, 1), {"s": 10}))
    second = write_run(tmp_path / "b", test=named(random_split(12, 1), {"s": 12}))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"b: its test split is not that of .*a; only"):
        main(SourcesConfig(metrics_dirs=[str(first), str(second)], output_dir=str(out)))
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"source_pattern": "("}, "--source-pattern: '\\('"),
        ({"source_pattern": "a.*"}, "--source-pattern: 'a.*' has no group"),
        ({"draws": 0}, "--draws"),
        ({"calibrate_on": -1}, "--calibrate-on: -1 is below 0"),
        ({"target_false_alarm": 1.0}, "--target-false-alarm"),
    ],
)
def test_bad_options_are_named(options, fault):
    with pytest.raises(InputError, match=fault):
        SourcesConfig(metrics_dirs=["a"], output_dir="b", **options)

"""The whole table from one command, on tiny models."""

import re
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import run

FAST = "--epochs 1 --batch-size 8 --learning-rate 2e-3 --eval-steps 6 --precision fp32".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny, small_fineharm):
    """A folder that run-table.sh has filled, and what it printed the second time."""
    folder = tmp_path_factory.mktemp("table") / "runs"
    modernbert = folder.parent / "modernbert"
    run("bash", "scripts/get-backbone.sh", "tiny-modernbert", modernbert)
    environment = {
        "BACKBONE": str(tiny), "MODERNBERT": str(modernbert), "MAX_LENGTH": "96",
        "TEST_FLAGS": "--bootstrap 50", "MODERNBERT_FLAGS": "--eval-steps 1 --precision fp32",
        "PARTIAL_FLAGS": "--stride 8",
    }  # fmt: skip
    words = ["bash", "scripts/run-table.sh", small_fineharm, folder, *FAST]
    run(*words, **environment)
    return folder, run(*words, ABLATIONS="no", SEEDS="42 43", **environment).stdout


def test_every_row_is_there(runs):
    table = pd.read_csv(runs[0] / "tables" / "table.csv")
    rows = set(zip(table["row"], table["detection"], strict=True))
    for row in ("scm", "modernbert-partial", "qwen-partial", "tfidf", "length"):
        assert any(key == row and "partial" in kind for key, kind in rows), row
    for row in ("scm", "qwen-full", "modernbert-full", "tfidf", "length"):
        assert any(key == row and "full" in kind for key, kind in rows), row
    methods = set(table["method"])
    for name in ("no logic loss", "no holistic scorer", "α 0.2", "α 0.4", "α 0.8", "word rule all"):
        assert any(name in str(method) for method in methods), name
    assert len(list((runs[0] / "figures").glob("*.png"))) >= 5
    assert (runs[0] / "metrics" / "scm" / "examples.html").is_file()


def test_a_second_time_only_another_seed_is_trained(runs):
    assert runs[1].count("the run is finished already") == 3
    trained = re.findall(r"best checkpoint: .* in (.*)", runs[1])
    assert [Path(folder).name for folder in trained] == ["scm-43", "qwen-43"]
    table = pd.read_csv(runs[0] / "tables" / "table.csv")
    seeds = table.groupby("row")["seeds"].agg(set).to_dict()
    assert seeds["scm"] > {"42; 43"} and seeds["qwen-full"] == seeds["qwen-partial"] == {"42; 43"}
    assert re.search(
        r"\| [\d.]+ ± [\d.]+ \[[\d.]+, [\d.]+\] \|", (runs[0] / "tables" / "table.md").read_text()
    )

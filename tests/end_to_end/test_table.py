"""The whole table from one command, on tiny models."""

import importlib
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from model.get_backbone import BackboneConfig, build_modernbert
from tests.conftest import run
from utils.cli import run_command

pytestmark = pytest.mark.slow

FAST = "--epochs 1 --batch-size 8 --learning-rate 2e-3 --eval-steps 6 --precision fp32".split()


class Table:
    """A folder that run-table.sh fills.

    The scripts run for real, but for Python: what they call it with is noted, and then done in this
    process, which has imported everything already.
    """

    def __init__(self, folder: Path, records: Path, backbone: Path) -> None:
        self.runs, self.records, self.venv = folder / "runs", records, folder / "venv"
        self.noted = folder / "noted"
        python = self.venv / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\nprintf \'%s\\t\' "$@" >> "$NOTED"; echo >> "$NOTED"\n')
        python.chmod(0o755)
        modernbert = folder / "modernbert"
        build_modernbert(modernbert, BackboneConfig("tiny-modernbert", str(modernbert)))
        self.environment = {
            "VIRTUAL_ENV": str(self.venv), "NOTED": str(self.noted), "MAX_LENGTH": "96",
            "BACKBONE": str(backbone), "MODERNBERT": str(modernbert),
            "TEST_FLAGS": "--bootstrap 50", "MODERNBERT_FLAGS": "--eval-steps 1 --precision fp32",
            "PARTIAL_FLAGS": "--stride 8",
        }  # fmt: skip

    def fill(self, **environment: str) -> None:
        """Runs run-table.sh."""
        words = ["bash", "scripts/run-table.sh", self.records, self.runs, *FAST]
        self.noted.write_text("")
        run(*words, **self.environment, **environment)
        for line in self.noted.read_text().splitlines():
            flag, package, *rest = line.rstrip("\t").split("\t")
            assert flag == "-m"
            if package != "pip":  # the environment's
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(sys, "argv", [package, *rest])
                    patch.setattr("signal.signal", lambda *_: None)
                    run_command(importlib.import_module(f"{package}.__main__").COMMANDS)


@pytest.fixture(scope="module")
def table(tmp_path_factory, tiny, small_fineharm) -> Table:
    """It is filled once."""
    made = Table(tmp_path_factory.mktemp("table"), small_fineharm, tiny)
    made.fill()
    return made


def test_every_row_is_there(table):
    found = pd.read_csv(table.runs / "tables" / "table.csv")
    rows = set(zip(found["row"], found["detection"], strict=True))
    for row in ("scm", "modernbert-partial", "qwen-partial", "tfidf", "length"):
        assert any(key == row and "partial" in kind for key, kind in rows), row
    for row in ("scm", "qwen-full", "modernbert-full", "tfidf", "length"):
        assert any(key == row and "full" in kind for key, kind in rows), row
    methods = set(found["method"])
    for name in ("no logic loss", "no holistic scorer", "α 0.2", "α 0.4", "α 0.8", "word rule all"):
        assert any(name in str(method) for method in methods), name
    assert len(list((table.runs / "figures").glob("*.png"))) >= 5
    assert (table.runs / "metrics" / "scm" / "examples.html").is_file()


def test_a_second_time_only_another_seed_is_trained(table, capsys):
    table.fill(ABLATIONS="no", SEEDS="42 43")
    told = capsys.readouterr().out
    assert told.count("the run is finished already") == 2 + 2 + 3 + 5  # data, baselines, encoder, …
    trained = re.findall(r"best checkpoint: .* in (.*)", told)
    assert [Path(folder).name for folder in trained] == ["scm-43", "qwen-43"]
    found = pd.read_csv(table.runs / "tables" / "table.csv")
    seeds = found.groupby("row")["seeds"].agg(set).to_dict()
    assert seeds["scm"] > {"42; 43"} and seeds["qwen-full"] == seeds["qwen-partial"] == {"42; 43"}
    text = (table.runs / "tables" / "table.md").read_text()
    assert re.search(r"\| [\d.]+ ± [\d.]+ \[[\d.]+, [\d.]+\] \|", text)

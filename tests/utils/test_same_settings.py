"""Runs of one folder have the settings of its first run; scripts/run-table.sh on stand-ins."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.files import InputError
from utils.same_settings import hold

# Writes down its command line and makes what the true script makes of it.
STAND_IN = """echo "$(basename "$0" .sh) $*" >> log
case $0 in
*run-data*) mkdir -p "$1"; touch "$1/meta.json" ;;
*get-backbone*) mkdir -p "$2" ;;
esac
while [[ $# -gt 0 && $1 != --output-dir ]]; do shift; done
if [[ $# -gt 0 && ( $2 == */metrics/* || ! -e $2/run.json ) ]]; then  # a model is finished already
    mkdir -p "$2"
    sleep 0.02  # the clock of files ticks slowly
    touch "$2/run.json"
fi
"""
OURS = {"run-table.sh", "run-ablations.sh"}


def keep(folder: Path, *settings: str) -> str:
    """Holds a folder to settings; returns what is kept then."""
    hold(folder / "settings.txt", list(settings))
    return (folder / "settings.txt").read_text()


def test_the_setting_that_differs_is_named(tmp_path):
    assert keep(tmp_path, "A=1", "B=--x 2 --y=3", "C=") == "A=1\nB=--x 2 --y=3\nC=\n"
    (tmp_path / "models").mkdir()
    assert keep(tmp_path, "A=1", "B= --x  2 --y=3", "C=") == "A=1\nB=--x 2 --y=3\nC=\n"
    for changed in (["A=2"], ["A=1", "B=--x 2 --y=4"], ["C=1"], ["A="]):
        name = changed[-1].partition("=")[0]
        with pytest.raises(InputError, match=f"settings.txt: {name}: it was '.*', not '.*'; take"):
            keep(tmp_path, *changed)
    assert keep(tmp_path, "A=1", "D=new") == "A=1\nB=--x 2 --y=3\nC=\nD=new\n"
    (tmp_path / "settings.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match="settings.txt: cannot be read"):
        keep(tmp_path, "A=1")


def test_settings_that_made_nothing_bind_nobody(tmp_path):
    keep(tmp_path, "A=wrong", "B=1")
    (tmp_path / "settings-of-others.txt").touch()
    assert keep(tmp_path, "A=right") == "A=right\n"
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="A: it was 'right', not 'wrong'"):
        keep(tmp_path, "A=wrong")


@pytest.fixture()
def table(tmp_path):
    """Runs one of our scripts; the scripts that it calls are stand-ins.

    Returns its exit status, the last line of its errors and what it called, a line each.
    """
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for path in (ROOT / "scripts").glob("*.sh"):
        if path.name in OURS:
            shutil.copy(path, scripts)
        else:
            (scripts / path.name).write_text("" if path.name == "setup.sh" else STAND_IN)
    (tmp_path / "utils").symlink_to(ROOT / "utils")
    environment = {name: value for name, value in os.environ.items() if "FLAGS" not in name}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def call(*words: str, script: str = "table", **changes: str) -> tuple[int, str, list[str]]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", f"scripts/run-{script}.sh", *words],
            cwd=tmp_path, env=environment | changes, capture_output=True, text=True,
        )  # fmt: skip
        called = log.read_text().splitlines() if log.exists() else []
        return done.returncode, done.stderr.strip(), called

    return call


def outputs_of(called: list[str]) -> list[str]:
    """The folders that were tested into, and floors."""
    words = [line.split() for line in called if "/metrics/" in line and "run-" in line]
    return [Path(one[one.index("--output-dir") + 1]).name for one in words]


def test_the_table_is_held_to_its_settings(table, tmp_path):
    first = {"MAX_LENGTH": "256", "TEST_FLAGS": "--precision auto", "WORD_RULES": "all=data-2"}
    words = ["records", "runs", "--epochs", "1"]
    status, errors, called = table(*words, ABLATIONS="no", **first)
    assert status == 0 and len(outputs_of(called)) == 7, errors
    status, errors, called = table("records/", "runs/", *words[2:], **first)
    assert status == 0 and len(outputs_of(called)) == 6, errors  # the ablations
    status, errors, called = table(*words, **first, SEEDS="42")
    assert status == 0 and not outputs_of(called), errors
    for other, changes, name in (
        (["other", *words[1:]], {}, "records"),
        ([*words[:3], "2"], {}, "training flags"),
        (words, {"MAX_LENGTH": "512"}, "MAX_LENGTH"),
        (words, {"TEST_FLAGS": "--precision auto --target-false-alarm 0.01"}, "TEST_FLAGS"),
        (words, {"PARTIAL_FLAGS": "--stride 4"}, "PARTIAL_FLAGS"),
        (words, {"WORD_RULES": "all=data-3"}, "WORD_RULES all"),
    ):
        status, errors, called = table(*other, **{**first, **changes})
        assert (status, called) == (2, [])
        assert errors.startswith(f"error: runs/settings.txt: {name}: it was") and "\n" not in errors
    # an older version kept no settings
    for path in (tmp_path / "runs").glob("settings*"):
        path.unlink()
    status, errors, called = table(*words, **{**first, "MAX_LENGTH": "512"})
    assert status == 0 and not outputs_of(called), errors
    assert "MAX_LENGTH=512\n" in (tmp_path / "runs" / "settings.txt").read_text()


def test_the_ablations_are_held_to_theirs(table):
    words = ["data", "backbone", "runs", "--epochs", "1"]
    status, errors, called = table(*words, script="ablations")
    assert status == 0 and len(outputs_of(called)) == 5, errors
    rules = {"WORD_RULES": "all=data-2"}
    status, errors, called = table(*words, script="ablations", **rules)
    assert status == 0 and outputs_of(called) == ["scm-words-all"], errors
    rules = {"WORD_RULES": "all=data-3"}
    status, errors, called = table(*words, script="ablations", **rules)
    assert (status, called) == (2, []) and "settings-ablations.txt: WORD_RULES all:" in errors


def test_the_table_makes_the_data_of_every_word_unless_it_is_given(table):
    made = "run-data runs/data-words-all backbones/smollm2-135m --input-dir records"
    made += " --max-length 4096 --word-rule all"
    for ablations, runs, rules, times in (
        ("no", "runs", "", 0), ("yes", "runs", "", 1), ("yes", "runs", "", 0),
        ("yes", "other", "delete=data-2 all=data-3", 0),
    ):  # fmt: skip
        status, errors, called = table("records", runs, ABLATIONS=ablations, WORD_RULES=rules)
        assert status == 0, errors
        assert called.count(made) == times
    trained = [line.split()[1:5] for line in called if "/models/scm-words-" in line]
    assert ["--output-dir", "other/models/scm-words-all", "--data-dir", "data-3"] in trained
    tested = next(line for line in called if "/metrics/scm-words-all" in line)
    assert "--data-dir other/data --output-dir" in tested  # beside the others, their labels


def test_what_is_trained_anew_is_tested_anew(table, tmp_path):
    table("records", "runs")
    before = time.time() - 100
    for path in (tmp_path / "runs").rglob("*.json"):
        os.utime(path, (before + ("metrics" in path.parts),) * 2)
    for changed, expected in (
        ("models/qwen/run.json", ["qwen-full", "qwen-partial"]),
        ("models/scm-no-logic/run.json", ["scm-no-logic"]),
        ("data/meta.json", ["tfidf", "length"]),
    ):
        (tmp_path / "runs" / changed).touch()
        status, errors, called = table("records", "runs")
        assert status == 0 and outputs_of(called) == expected, errors
        assert all("--overwrite" in line for line in called if "/metrics/" in line)


def test_each_seed_has_folders_of_its_own(table, tmp_path):
    status, errors, called = table("records", "runs", "--seed", "1", ABLATIONS="no", SEEDS="42 43")
    assert status == 0, errors
    trained = [line for line in called if "/models/" in line and " test " not in line]
    seeds = {Path(line.split()[2]).name: line.split()[-1] for line in trained}  # the last one wins
    assert seeds.pop("modernbert").startswith("--")
    assert seeds == {"scm": "42", "qwen": "42", "scm-43": "43", "qwen-43": "43"}
    assert {"scm-43", "qwen-full-43", "qwen-partial-43"} < set(outputs_of(called))
    for line in called:
        if "/metrics/" in line and "-43" in line:
            assert "/models/scm-43" in line or "/models/qwen-43" in line

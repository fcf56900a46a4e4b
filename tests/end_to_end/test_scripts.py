"""Every script explains itself, and all that the pages name exists: commands, links, files."""

import re
import shlex
import subprocess

import pytest

from annotation.options import BuildConfig
from benchmarks import annotation as benchmark_annotation
from data import prepare as prepare_data
from data.options import DataConfig
from model import export_classifier, get_backbone
from model.options import BackboneConfig, ExportConfig
from monitor import calibrate
from monitor.options import ShowConfig
from reports import examples_page, figures, tables
from reports.options import ExamplesConfig
from test import causal, floor, guard, live, modernbert, rules
from tests.conftest import ROOT, run
from tests.end_to_end.pages import PAGES, README
from train.options import QwenConfig, TrainConfig
from utils.cli import parse

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh"))
TAKES_NO_FLAGS = {"setup.sh", "run-tests.sh", "run-demo.sh", "run-qwen-partial.sh"}
TAKES_NO_FLAGS |= {"run-modernbert-partial.sh", "run-ablations.sh", "run-table.sh"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound_shell(script):
    path = ROOT / "scripts" / script
    text = path.read_text()
    assert "set -euo pipefail" in text and text.startswith("#!/usr/bin/env bash")
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o111


ROWS = ("scm", "qwen-full", "qwen-partial", "modernbert-full", "modernbert-partial")
HELPFUL = [[name] for name in SCRIPTS if name not in TAKES_NO_FLAGS]
HELPFUL += [[f"run-{row}.sh", "test"] for row in ROWS]
HELPFUL += [["run-benchmark.sh", "detection"]]
WRITES_NOTHING = {"run-monitor.sh"}


@pytest.mark.parametrize("words", HELPFUL, ids=" ".join)
def test_every_script_has_help(words):
    text = run("bash", f"scripts/{words[0]}", *words[1:], "--help").stdout
    assert "usage:" in text and ("--output" in text or words[0] in WRITES_NOTHING)


def commands() -> list[str]:
    """The pages' command lines, continuation lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(PAGES.values()), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def test_the_pages_have_every_script():
    text = "\n".join(commands())
    for script in SCRIPTS:
        assert f"scripts/{script}" in text, script


PARSERS = {
    "scripts/run-data.sh": (DataConfig, prepare_data.POSITIONAL),
    "scripts/get-backbone.sh": (BackboneConfig, get_backbone.POSITIONAL),
    "scripts/run-floor.sh": (floor.BaselineConfig, floor.POSITIONAL),
    "scripts/run-scm.sh": (QwenConfig, ()),
    "scripts/run-guard.sh": (guard.GuardConfig, guard.POSITIONAL),
    "scripts/run-scm.sh test": (causal.TestConfig, (), "--row", "scm"),
    "scripts/run-qwen-full.sh": (QwenConfig, ()),
    "scripts/run-qwen-full.sh test": (causal.TestConfig, (), "--row", "qwen-full"),
    "scripts/run-qwen-partial.sh test": (causal.TestConfig, (), "--row", "qwen-partial"),
    "scripts/run-modernbert-full.sh": (TrainConfig, ()),
    "scripts/run-modernbert-full.sh test": (modernbert.TestConfig, (), "--row", "modernbert-full"),
    "scripts/run-modernbert-partial.sh test": (
        modernbert.TestConfig,
        (),
        "--row",
        "modernbert-partial",
    ),
    "scripts/make-figures.sh": (figures.FigureConfig, figures.POSITIONAL),
    "scripts/run-table.sh": (QwenConfig, ("data_dir", "output_dir"), "--base_model_path", "x"),
    "scripts/run-ablations.sh": (QwenConfig, ("data_dir", "base_model_path", "output_dir")),
    "annotation.pipeline": (BuildConfig, ()),
    "scripts/make-examples.sh": (ExamplesConfig, examples_page.POSITIONAL),
    "scripts/make-tables.sh": (tables.TablesConfig, tables.POSITIONAL),
    "scripts/calibrate-monitor.sh": (calibrate.CalibrateConfig, calibrate.POSITIONAL),
    "scripts/compare-rules.sh": (rules.RulesConfig, rules.POSITIONAL),
    "scripts/check-live.sh": (live.LiveConfig, live.POSITIONAL),
    "benchmarks.annotation": (benchmark_annotation.BenchmarkConfig, ()),
    "scripts/run-annotate.sh": (BuildConfig, ()),
    "scripts/run-monitor.sh": (ShowConfig, ()),
    "model.export_classifier": (ExportConfig, export_classifier.POSITIONAL),
}


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_pages_parses(line):
    """Words go through the parser of the command's own options; nothing is run."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "pip":
        assert (ROOT / words[-1]).is_file()
        return
    if words[0] == "python":
        assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
        name, rest = words[2], words[3:]
    else:
        assert words[0] == "bash" and (ROOT / words[1]).is_file()
        name, rest = words[1], words[2:]
        if rest[:1] == ["test"]:
            name, rest = f"{name} test", rest[1:]
    if name not in PARSERS:
        assert not any(word.startswith("--") for word in rest), f"{name}: add its parser"
        return
    config_class, positional, *fixed = PARSERS[name]
    parse(config_class, [*rest, *fixed], positional)


def test_the_readme_is_short():
    lines = PAGES[README].splitlines()
    assert len(lines) <= 220
    assert "bash scripts/run-demo.sh" in lines[:59] and "bash scripts/run-tests.sh" in lines[:59]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_exists(page):
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists() and (not anchor or anchor in anchors(linked.read_text())), target
    for name in re.findall(r"`([a-z_]+/[\w/-]+\.(?:py|sh))`", prose):
        assert (ROOT / name).is_file(), name

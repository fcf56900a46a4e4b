"""Every script explains itself, and all that the pages name exists: commands, links, files."""

import importlib
import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT, run
from tests.end_to_end.pages import PAGES, README
from utils.cli import parse

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound_shell(script):
    path = ROOT / "scripts" / script
    text = path.read_text()
    assert "set -euo pipefail" in text and text.startswith("#!/usr/bin/env bash")
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("words", [["run-scm.sh"], ["run-scm.sh", "test"]], ids=" ".join)
def test_a_script_has_help(words):
    """The others', too, end in `python -m PACKAGE`, whose commands are asked in tests/utils."""
    text = run("bash", f"scripts/{words[0]}", *words[1:], "--help").stdout
    assert "usage:" in text and "--output-dir" in text


def commands() -> list[str]:
    """The pages' command lines, continuation lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(PAGES.values()), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def test_the_pages_have_every_script():
    text = "\n".join(commands())
    for script in SCRIPTS:
        assert f"scripts/{script}" in text, script


def options_of(words: list[str]) -> tuple[dict, list[str]] | None:
    """Returns the commands of the package that a command line calls, and the words it gets.

    None where the words are no options of one command (run-demo.sh, run-tests.sh, …).
    """
    if words[0] == "python":
        package, rest = words[2], words[3:]
    else:
        package, rest = CALLS.get(" ".join(words[1:3]), CALLS.get(words[1], (None, [])))
        if package is None:
            return None
        rest = [*rest, *words[3 if " ".join(words[1:3]) in CALLS else 2 :]]
    return importlib.import_module(f"{package}.__main__").COMMANDS, rest


CALLS = {  # what the scripts run
    "scripts/run-data.sh": ("data", ["prepare"]),
    "scripts/get-backbone.sh": ("model", ["get-backbone"]),
    "scripts/get-scm.sh": ("model", ["get-scm"]),
    "scripts/pack-scm.sh": ("model", ["pack-scm"]),
    "scripts/run-floor.sh": ("test", ["baselines"]),
    "scripts/run-guard.sh": ("test", ["guard"]),
    "scripts/run-scm.sh": ("train", ["qwen"]),
    "scripts/run-scm.sh test": ("test", ["causal", "scm"]),
    "scripts/run-qwen-full.sh": ("train", ["qwen"]),
    "scripts/run-qwen-full.sh test": ("test", ["causal", "qwen-full"]),
    "scripts/run-qwen-partial.sh test": ("test", ["causal", "qwen-partial"]),
    "scripts/run-modernbert-full.sh": ("train", ["modernbert"]),
    "scripts/run-modernbert-full.sh test": ("test", ["modernbert", "modernbert-full"]),
    "scripts/run-modernbert-partial.sh test": ("test", ["modernbert", "modernbert-partial"]),
    "scripts/make-figures.sh": ("reports", ["figures"]),
    "scripts/make-examples.sh": ("reports", ["examples"]),
    "scripts/make-tables.sh": ("reports", ["tables"]),
    "scripts/calibrate-monitor.sh": ("monitor", ["calibrate"]),
    "scripts/compare-rules.sh": ("test", ["rules"]),
    "scripts/compare-sources.sh": ("test", ["sources"]),
    "scripts/run-mlpm.sh": ("moderator", ["train"]),
    "scripts/run-mlpm.sh test": ("test", ["prompts"]),
    "scripts/run-mlpm.sh curves": ("test", ["prompt-curves"]),
    "scripts/run-mlpm.sh with-monitor": ("test", ["with-monitor"]),
    "scripts/run-mlpm.sh prior": ("moderator", ["prior"]),
    "scripts/run-mlpm.sh floor": ("test", ["prompt-baselines"]),
    "scripts/run-mlpm.sh add-class": ("moderator", ["add-class"]),
    "scripts/run-mlpm.sh remove-class": ("moderator", ["remove-class"]),
    "scripts/run-align.sh sft": ("align", ["train", "--method", "sft"]),
    "scripts/run-align.sh dpo": ("align", ["train", "--method", "dpo"]),
    "scripts/run-align.sh tokendpo": ("align", ["train", "--method", "tokendpo"]),
    "scripts/run-align.sh labels": ("align", ["labels"]),
    "scripts/run-align.sh pairs": ("align", ["pairs"]),
    "scripts/run-align.sh test": ("test", ["align"]),
    "scripts/run-gateway.sh": ("serve", ["gateway"]),
    "scripts/run-gateway.sh replicas": ("serve", ["replicas"]),
    "scripts/check-live.sh": ("test", ["live"]),
    "scripts/run-annotate.sh": ("annotation", []),
    "scripts/run-monitor.sh": ("monitor", ["show"]),
    "scripts/run-benchmark.sh detection": (
        "benchmarks",
        ["detection", "--base-model-path", "x", "--encoder-path", "y"],
    ),
    "scripts/run-benchmark.sh gateway": ("benchmarks", ["gateway"]),
    "scripts/run-benchmark.sh litellm": ("benchmarks", ["litellm"]),
    "scripts/run-benchmark.sh replicas": ("benchmarks", ["replicas"]),
    "scripts/run-benchmark.sh prompts": ("benchmarks", ["prompts", "--base-model-path", "x"]),
    "scripts/run-benchmark.sh monitor": ("benchmarks", ["monitor", "--base-model-path", "x"]),
    "scripts/run-benchmark.sh": ("benchmarks", ["training", "--base-model-path", "x"]),
}
# the package whose training takes their further words, and what the first ones are there
TABLES = {
    "scripts/run-table.sh": ("train", "qwen", ["--data-dir", "--output-dir"]),
    "scripts/run-ablations.sh": (
        "train", "qwen", ["--data-dir", "--base-model-path", "--output-dir"],
    ),
    "scripts/run-align-table.sh": (
        "align", "train", ["--data-dir", "--base-model-path", "--state-cache", "--output-dir"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_pages_parses(line):
    """Words go through the parser of the command's own options; nothing is run."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "pip":
        assert (ROOT / words[-1]).is_file()
        return
    if words[:3] == ["python", "-m", "reports.architecture"]:  # no options
        return
    assert words[0] == "python" or (words[0] == "bash" and (ROOT / words[1]).is_file())
    if words[1] in TABLES:
        package, command, first = TABLES[words[1]]
        named = zip(first, words[2:], strict=False)
        rest = [command, *(word for pair in named for word in pair), "--base-model-path", "x"]
        found = (
            importlib.import_module(f"{package}.__main__").COMMANDS,
            [*rest, *words[2 + len(first) :]],
        )
    else:
        found = options_of(words)
    if found is None:
        assert not any(word.startswith("--") for word in words[3:]), f"{line}: add its command"
        return
    known, rest = found
    config = parse(known[rest[0]].options, rest[1:], known[rest[0]].positional)
    assert not getattr(config, "passed_on", ())


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

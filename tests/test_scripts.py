"""Every script explains itself, and every command in the README is one that exists."""

import re
import shlex
import subprocess

import pytest

from tests.conftest import ROOT, run

README = (ROOT / "README.md").read_text()
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh"))
TAKES_NO_FLAGS = {"setup.sh", "run-tests.sh", "run-demo.sh"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound_shell(script):
    path = ROOT / "scripts" / script
    text = path.read_text()
    assert "set -euo pipefail" in text and text.startswith("#!/usr/bin/env bash")
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("words", [[name] for name in SCRIPTS if name not in TAKES_NO_FLAGS]
                         + [["run-scm.sh", "test"]], ids=" ".join)  # fmt: skip
def test_every_script_has_help(words):
    text = run("bash", f"scripts/{words[0]}", *words[1:], "--help").stdout
    assert "usage:" in text and "--output-dir" in text or "--output" in text


def commands() -> list[str]:
    """The README's command lines, continuation lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def test_the_readme_has_its_commands():
    text = "\n".join(commands())
    for script in SCRIPTS:
        assert script == "setup.sh" or f"scripts/{script}" in text, script


@pytest.mark.parametrize(
    "line", [line for line in commands() if "scripts/" in line or " -m " in line]
)
def test_every_readme_command_parses(line):
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    if words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        if words[1].rpartition("/")[2] in TAKES_NO_FLAGS:
            return
        head = words[:3] if words[2:3] in (["test"], ["tfidf"], ["length"]) else words[:2]
    else:
        head = words[:3]
        if not flags:
            return
    text = run(*head, "--help").stdout
    for flag in flags:
        assert re.search(rf"{re.escape(flag)}\b", text), f"{flag} is no option of {' '.join(head)}"

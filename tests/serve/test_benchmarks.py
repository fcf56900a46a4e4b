"""The gateway's benchmark, through its script, on a tiny monitor: what it writes, not how fast."""

import json

import pytest

from monitor.settings import write_settings
from tests.conftest import run, settings_of

pytestmark = pytest.mark.slow


def test_the_benchmark_of_the_gateway(monitors, tmp_path):
    folder, _ = monitors("tiny")
    write_settings(tmp_path / "monitor.json", settings_of())
    words = ["--model-path", folder, "--settings", tmp_path / "monitor.json", "--tokens", "6"]
    words += ["--streams", "3", "--seconds", "1", "--repeats", "1", "--rate", "50"]
    out = tmp_path / "gateway.json"
    run("bash", "scripts/run-benchmark.sh", "gateway", *words, "--output", out)
    found = json.loads(out.read_text())
    assert [row["way"] for row in found["latency"]] == ["upstream", "bare proxy", "gateway"]
    assert [row["way"] for row in found["cost"]] == ["bare proxy", "gateway"]
    assert found["load"]["wrong"] == 0 and found["load"]["answers"] >= 3


def test_litellm_and_ray_are_asked_for_where_they_lack(monitors, tmp_path):
    folder, monitor = monitors("tiny")
    write_settings(folder / "monitor.json", settings_of())
    try:
        words = ["--model-path", folder, "--litellm", tmp_path / "none", "--output", tmp_path / "o"]
        done = run("bash", "scripts/run-benchmark.sh", "litellm", *words, check=False)
        assert done.returncode == 2 and "--litellm: " in done.stderr.splitlines()[-1]
        words = ["--model-path", folder, "--llm", "x"]
        done = run("bash", "scripts/run-gateway.sh", "replicas", *words, check=False)
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and "pip install -r requirements-serve.txt" in lines[-1]
    finally:
        (folder / "monitor.json").unlink()
    assert not (tmp_path / "o").exists()

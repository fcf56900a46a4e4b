"""run.json: what ran, on what, with which data, so that a number can be traced to its run."""

import dataclasses
import importlib.metadata
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from utils.files import InputError, read_json, write_json

RECORD = "run.json"
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"


def device_name() -> str:
    """Names the device models run on: the GPU, or the processor and its threads."""
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = found.group(1) if found else cpu
    except OSError:
        pass  # no Linux
    return f"cpu: {cpu}, {torch.get_num_threads()} threads"


def start_record(config: Any, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the record of a run that starts now.

    Args:
        config: The stage's dataclass; all of it is recorded.
        data: What the run reads (`ProcessedData.summary`).
    """
    return {
        "status": "running",
        "argv": sys.orig_argv[1:],
        "config": dataclasses.asdict(config),
        "data": data,
        "git": _git_state(),
        "versions": _versions(),
        "device": device_name(),
        "platform": platform.platform(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_record(
    folder: Path, record: dict[str, Any], started: float | None = None, **more: Any
) -> None:
    """Writes run.json; with `started` (from time.monotonic) the run is marked as finished."""
    if started is not None:
        more = {"status": "finished", "seconds": round(time.monotonic() - started, 1), **more}
    write_json(Path(folder) / RECORD, {**record, **more})


def read_record(folder: Path) -> dict[str, Any] | None:
    """Returns a folder's run.json, or None where there is none."""
    path = Path(folder) / RECORD
    return read_json(path) if path.is_file() else None


def model_summary(folder: Path) -> dict[str, Any]:
    """Returns what a test's record says of the model that a training made; less of another's."""
    record = read_record(folder) or {}
    config, git = record.get("config", {}), record.get("git") or {}
    return {
        "folder": str(folder),
        "config": config,
        "data_sha256": (record.get("data") or {}).get("meta_sha256"),
        "backbone": record.get("backbone"),
        "base_model_path": config.get("base_model_path"),
        "seed": config.get("seed"),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "seconds": record.get("seconds"),
    }


def check_same_run(folder: Path, old: dict[str, Any], new: dict[str, Any], free: set[str]) -> None:
    """Refuses to resume a run with another configuration or on other data.

    Args:
        folder: The run's folder, for the message.
        old: Its record.
        new: The record of the run that wants to go on.
        free: Options that may differ.

    Raises:
        InputError: Names the first option that differs.
    """
    before, now = old.get("config", {}), new["config"]
    for name in sorted(set(before) | set(now)):
        if name not in free and before.get(name) != now.get(name):
            raise InputError(
                f"{folder}/run.json: field 'config.{name}': the run was started with"
                f" {before.get(name)!r}, not {now.get(name)!r}; --resume goes on as it was started"
            )
    for kind in ("data", "backbone"):
        before, now = ({**(one.get(kind) or {}), "folder": None} for one in (old, new))
        before.setdefault("config.json", now.get("config.json"))  # an older version did not keep it
        for name in now:
            if before.get(name) != now[name]:
                raise InputError(
                    f"{folder}/run.json: field '{kind}.{name}': the run was started with another"
                )


def _git_state() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REQUIREMENTS.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None  # a copy without its history


def _versions() -> dict[str, str]:
    names = re.findall(r"^([\w.-]+)==", REQUIREMENTS.read_text(), flags=re.MULTILINE)
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions

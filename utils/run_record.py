"""Output folders: claimed first, filled under another name, then renamed, with their run.json.

run.json records what ran, on what and with which data: a number can be traced to its run, and a
command that is given again recognises that it is done.
"""

import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from utils.files import InputError, read_json, sha256_file, write_json

RECORD = "run.json"
ROOM = 1 << 20  # bytes; a disk with less is full
REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"

# Options that two runs of one result may differ in: paths, whose content is compared by its hash
# among the inputs, and what changes speed and logs only.
FREE = set(
    "output_dir data_dir input_dir input model_path base_model_path tokenizer_path corpus test_dir"
    " runs_dir metrics_dir metrics_dirs annotator_model label_cache frozen_cache resume overwrite"
    " state_cache monitor_path moderator_path prompts examples"
    " num_workers logging_steps save_total_limit".split()
)


class FinishedAlready(Exception):
    """The output folder holds the finished run of the same options and inputs."""


@contextmanager
def run_folder(config: Any) -> Iterator[Path]:
    """Fills a command's output folder under a temporary name: all of it appears, or nothing.

    Args:
        config: The command's options. `output_dir` names the folder; `overwrite` replaces an
            earlier run once the new one is complete; `inputs()` returns the hashes of what the
            command reads, in dictionaries of any depth.

    Yields:
        The temporary folder to write into.

    Raises:
        FinishedAlready: The same options and inputs filled the folder already.
        InputError: The folder holds something else, or another process is filling it.
    """
    folder, began = Path(config.output_dir), time.monotonic()
    partial = folder.with_name(f".{folder.name}.partial")
    record = start_record(config, **config.inputs())
    with claim(partial):
        refuse_taken(config, record)
        empty(partial)  # of a run that was killed
        yield partial
        noted = partial / RECORD
        write_record(partial, record | (read_json(noted) if noted.exists() else {}), began)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)  # of a run that was killed here
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    print(f"written to {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def note(folder: Path, **facts: Any) -> None:
    """Adds to the record of the run that fills a folder of `run_folder`."""
    write_json(folder / RECORD, facts)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Makes a folder and locks it against other processes; removes it if left empty or temporary.

    Raises:
        InputError: Another process holds the lock, or the folder is a file.
        OSError: Such as a full disk; names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder}: is a file, an output folder was expected") from None
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
            locked = _lies_at(handle, folder)
        except BlockingIOError:
            locked = False
        if not locked:
            raise InputError(f"{folder}: another process is writing to it")
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(folder)  # a full disk does not name it
            raise
        except (RuntimeError, SafetensorError) as error:  # PyTorch's words for a full disk
            if shutil.disk_usage(folder).free < ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise
        finally:
            if not _lies_at(handle, folder):
                pass  # renamed to its place; another process may hold the name by now
            elif folder.name.endswith(".partial"):
                shutil.rmtree(folder, ignore_errors=True)
            elif not any(folder.iterdir()):
                folder.rmdir()
    finally:
        os.close(handle)


def _lies_at(handle: int, folder: Path) -> bool:
    """Tells whether an open folder still has its name."""
    return folder.exists() and os.path.samestat(os.fstat(handle), os.stat(folder))


def empty(folder: Path) -> None:
    """Removes all that lies in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def refuse_taken(config: Any, record: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Refuses an output folder that a command may not fill.

    Args:
        config: The command's options. `overwrite` replaces another run; `resume`, where there is
            such an option, continues an unfinished run of the same options and inputs.
        record: The run's, from `start_record`; made here if not given.

    Returns:
        The record of the run to continue, or None.

    Raises:
        FinishedAlready: The same options and inputs filled the folder already.
        InputError: The folder is a file, holds no run, or another one; names the option that
            differs.
    """
    folder = Path(config.output_dir)
    if folder.is_file():
        raise InputError(f"{folder}: is a file, an output folder was expected")
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    earlier = read_record(folder)
    if earlier is None:
        raise InputError(f"{folder}: holds something else (no {RECORD}) and is not overwritten")
    if earlier.get("command") != type(config).__name__:
        raise InputError(f"{folder}: holds the run of another command and is not overwritten")
    if config.overwrite:
        return None
    check_same_run(folder, earlier, record or start_record(config, **config.inputs()))
    if earlier.get("status") == "finished":
        raise FinishedAlready(f"{folder}: the run is finished already")
    if not getattr(config, "resume", False):
        raise InputError(f"{folder}: holds an unfinished run; pass --resume or --overwrite")
    return earlier


def device_name() -> str:
    """Names the device that models run on: the GPU, or the processor and PyTorch's threads."""
    torch = sys.modules.get("torch")  # not imported for its name alone
    if torch and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    about = Path("/proc/cpuinfo")  # of Linux
    found = re.search(r"model name\s*:\s*(.+)", about.read_text() if about.exists() else "")
    cpu = found.group(1) if found else platform.processor() or platform.machine()
    return f"cpu: {cpu}" + (f", {torch.get_num_threads()} threads" if torch else "")


def start_record(config: Any, **inputs: Any) -> dict[str, Any]:
    """Returns the record of a run that starts now: its options, inputs and surroundings."""
    return {
        "status": "running",
        "argv": sys.orig_argv[1:],
        "command": type(config).__name__,
        "config": dataclasses.asdict(config),
        **inputs,
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
    write_json(Path(folder) / RECORD, {**record, "device": device_name(), **more})


def read_record(folder: Path) -> dict[str, Any] | None:
    """Returns a folder's run.json, or None where there is none.

    Raises:
        InputError: It cannot be read or is no record.
    """
    path = Path(folder) / RECORD
    record = read_json(path) if path.is_file() else None
    if record is not None and not (isinstance(record, dict) and "config" in record):
        raise InputError(f"{path}: field 'config' is missing")
    return record


def model_summary(folder: Path) -> dict[str, Any]:
    """Returns what a test's record says of its model: hashes of its weights, and its training.

    The training is empty for a model that was not trained here.
    """
    record = read_record(folder) or {}
    config, git = record.get("config", {}), record.get("git") or {}
    return {
        "folder": str(folder),
        "weights": {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))},
        "config": config,
        "data_sha256": (record.get("data") or {}).get("meta_sha256"),
        "backbone": record.get("backbone"),
        "base_model_path": config.get("base_model_path"),
        "seed": config.get("seed"),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "seconds": record.get("seconds"),
    }


def check_same_run(folder: Path, earlier: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuses a folder whose run (`earlier`) had other options or inputs than a new one (`record`).

    Raises:
        InputError: Names the first option or input that differs.
    """
    place, advice = f"{folder}/{RECORD}: field", "name another folder or pass --overwrite"
    # as they were written: JSON knows no tuples
    before, now = earlier["config"], json.loads(json.dumps(record["config"]))
    for name in sorted((set(before) | set(now)) - FREE):
        if before.get(name) != now.get(name):
            differs = f"{before.get(name)!r}, not {now.get(name)!r}"
            raise InputError(
                f"{place} 'config.{name}': the run was started with {differs}; {advice}"
            )
    before, now = (hashes_in({key: one.get(key) for key in record}) for one in (earlier, record))
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            raise InputError(f"{place} '{name}': the run was started with another; {advice}")


def hashes_in(value: Any, place: str = "") -> dict[str, str]:
    """Returns each SHA-256 in nested dictionaries by its place: {"data.meta_sha256": …}."""
    if isinstance(value, dict):
        found = (hashes_in(item, f"{place}.{key}".lstrip(".")) for key, item in value.items())
        return dict(pair for one in found for pair in one.items())
    is_hash = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    return {place: value} if is_hash else {}


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

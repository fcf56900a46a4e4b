"""Output folders: claimed first, filled under another name, and put in place with their run.json.

run.json tells what ran, on what, with which data, so that a number can be traced to its run, and
so that a command which is given again knows that it is done.
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

# Options that two runs of one result may differ in. What lies at a path is compared by its hash,
# among the inputs; the others change speed and logs.
FREE = {"output_dir", "data_dir", "input_dir", "input", "model_path", "base_model_path"}
FREE |= {
    "tokenizer_path",
    "corpus",
    "test_dir",
    "runs_dir",
    "metrics_dir",
    "annotator_model",
    "label_cache",
    "frozen_cache",
}
FREE |= {"resume", "overwrite", "num_workers", "logging_steps", "save_total_limit"}


class FinishedAlready(Exception):
    """The output folder holds the finished run of the same options and inputs."""


@contextmanager
def run_folder(config: Any) -> Iterator[Path]:
    """Fills a command's output folder under a temporary name: all of it appears, or nothing.

    Args:
        config: The command's options. `output_dir` is the folder, `overwrite` replaces an earlier
            one (only once the new one is complete), `inputs()` returns what the command reads, by
            name: hashes of it, or dictionaries that hold some.

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
        noted = read_json(partial / RECORD) if (partial / RECORD).exists() else {}
        write_record(partial, record | noted, began)
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
    """Makes a folder and holds it against other processes, until the block ends however it ends.

    An empty or temporary folder goes with the block.

    Raises:
        InputError: Another process holds it, or it is a file.
        OSError: The disk is full, among others; names the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder}: is a file, an output folder was expected") from None
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it after a kill
            held = _lies_at(handle, folder)
        except BlockingIOError:
            held = False
        if not held:
            raise InputError(f"{folder}: another process is writing to it")
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(folder)  # a full disk does not name it
            raise
        except (RuntimeError, SafetensorError) as error:  # what PyTorch makes of a full disk
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
    """Says whether an open folder still has its name."""
    return folder.exists() and os.path.samestat(os.fstat(handle), os.stat(folder))


def empty(folder: Path) -> None:
    """Removes all that lies in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def refuse_taken(config: Any, record: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Says whether a command may fill its output folder.

    Args:
        config: Its options; `overwrite` replaces another run, `resume` (of those that have it)
            goes on with an unfinished one of the same options and inputs.
        record: Of the run, from `start_record`; made here where it is not.

    Returns:
        The record of the run to go on with; None where there is none.

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
    """Names the device models run on: the GPU, or the processor and PyTorch's threads on it."""
    torch = sys.modules.get("torch")  # a command that did not need it does not load it for this
    if torch and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = found.group(1) if found else cpu
    except OSError:
        pass  # no Linux
    return f"cpu: {cpu}" + (f", {torch.get_num_threads()} threads" if torch else "")


def start_record(config: Any, **inputs: Any) -> dict[str, Any]:
    """Returns the record of a run that starts now.

    Args:
        config: The command's options; all of them are recorded.
        inputs: What the run reads, see `run_folder`.
    """
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
    """Returns what a test's record says of its model: its weights' hashes, and how it was trained.

    Of a model that no training of ours made, the latter is empty.
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
    """Refuses a folder that a run of other options, or on other inputs, has filled.

    Args:
        folder: The folder, for the message.
        earlier: Its record.
        record: The record of the run that wants to fill it.

    Raises:
        InputError: Names the first option or input that differs.
    """
    # as they were written: JSON knows no tuples
    before, now = earlier["config"], json.loads(json.dumps(record["config"]))
    for name in sorted((set(before) | set(now)) - FREE):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{folder}/{RECORD}: field 'config.{name}': the run was started with"
                f" {before.get(name)!r}, not {now.get(name)!r}; name another folder or pass"
                " --overwrite"
            )
    before, now = (_hashes({key: one.get(key) for key in record}) for one in (earlier, record))
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{folder}/{RECORD}: field '{name}': the run was started with another; name"
                " another folder or pass --overwrite"
            )


def _hashes(value: Any, place: str = "") -> dict[str, str]:
    """Returns all SHA-256 in nested dictionaries by their places: {"data.meta_sha256": …}."""
    if isinstance(value, dict):
        found = (_hashes(item, f"{place}.{key}" if place else key) for key, item in value.items())
        return {key: item for one in found for key, item in one.items()}
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

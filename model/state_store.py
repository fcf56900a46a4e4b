"""Hidden states on disk: computed once, read by all who ask for the same text of the same model."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from utils.files import InputError, read_json, write_json


def state_key(ids: Sequence[int] | np.ndarray) -> str:
    """Returns the key of a text by its token ids."""
    return hashlib.sha256(np.asarray(ids).astype("<i4")).hexdigest()[:32]


def states_folder(cache: Path, maker: str) -> Path:
    """Returns the folder of the states of one maker: all that decides them besides the text."""
    return cache / hashlib.sha256(maker.encode()).hexdigest()[:16]


def read_states(folder: Path) -> dict[str, np.ndarray]:
    """Maps all states on disk by key, float32 (rows, hidden) each; none where there is no folder.

    A shard's list of keys is written last.
    """
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.json")):
        states = np.load(path.with_suffix(".npy"), mmap_mode="r")  # (all rows, hidden)
        start = 0
        for key, length in read_json(path):
            known[key] = states[start : start + length]
            start += length
    return known


def write_states(
    folder: Path,
    keys: Sequence[str],
    shape: tuple[int, int],
    states: Iterable[tuple[str, np.ndarray]],
    kind: str,
) -> None:
    """Writes one more shard of states, atomically.

    Args:
        folder: Of one model and one way to compute.
        keys: All keys that the shard will hold.
        shape: All its rows, hidden size.
        states: Each key with its states (rows, hidden), in any order; computed while it is read.
        kind: What they are, for messages.

    Raises:
        InputError: The disk has no room for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = 4 * shape[0] * shape[1], shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder}: no room for {kind}: {needed:,} bytes needed, {free:,} free")
    name = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]
    partial, written = folder / f".{name}.{os.getpid()}.partial", []
    try:
        with open(partial, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for key, rows in states:
                file.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
                written.append([key, len(rows)])
        os.replace(partial, folder / f"{name}.npy")
        write_json(folder / f"{name}.json", written)
    except OSError as error:
        error.filename = error.filename or str(folder)  # a full disk does not name it
        raise
    finally:
        partial.unlink(missing_ok=True)

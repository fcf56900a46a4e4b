"""Files: nothing half-written, and one clear line for every bad input."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any


class InputError(Exception):
    """Bad input. The message is one line that names file, record and field."""


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(content: bytes, where: str) -> Any:
    """Decodes JSON in UTF-8, with or without a byte order mark.

    Raises:
        InputError: It is not UTF-8 or malformed, an object names a key twice, or it holds thousands
            of brackets or digits. The message begins with `where`.
    """
    try:
        return json.loads(content.decode("utf-8-sig").rstrip(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(
            f"{where}: malformed JSON at {line}column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot be read as JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"field {name!r} stands twice in one object")
        found[name] = value
    return found


def read_json(path: Path) -> Any:
    """Reads one JSON file, see `parse_json`; raises InputError, too, where it cannot be read."""
    try:
        return parse_json(Path(path).read_bytes(), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinity become null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))  # lone surrogates


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_file(path: Path, overwrite: bool) -> None:
    """Raises InputError where an output file exists and may not be replaced."""
    if Path(path).exists() and not overwrite:
        raise InputError(f"{path}: exists already; name another file or pass --overwrite")

"""Rows of a JSON list or JSON lines, each with its place for messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.files import InputError


def iterate_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads a JSON list or JSON lines of objects, lines one by one.

    Args:
        path: A `.json` or `.jsonl` file; which of the two it is, its first character decides.

    Yields:
        (where, row) pairs; `where` is "FILE: record N" (or "line N"), from 1, for messages.

    Raises:
        InputError: The file cannot be read, is malformed, or holds something else.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:  # bytes: lines end at \n alone, JSON strings may hold U+2028
            first = b""
            while not first and (line := file.readline()):
                first = line.strip()[:1]
            file.seek(0)
            for where, row in _list_rows(path, file) if first == b"[" else _line_rows(path, file):
                if not isinstance(row, dict):
                    found = type(row).__name__
                    raise InputError(f"{where}: an object was expected, found {found}")
                yield where, row
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _list_rows(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(file.read().decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    for number, row in enumerate(rows, 1):
        yield f"{path}: record {number}", row


def _line_rows(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        where = f"{path}: line {number}"
        if not line.strip():
            continue
        try:
            yield where, json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 (byte {error.start})") from None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where}: malformed JSON at column {error.colno}: {error.msg}"
            ) from None
        except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
            raise InputError(f"{where}: cannot be read as JSON: {error}") from None


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Reads all rows of a JSON list or JSON lines, see `iterate_rows`.

    Raises:
        InputError: Also where the file holds no rows.
    """
    rows = list(iterate_rows(path))
    if not rows:
        raise InputError(f"{path}: holds no records")
    return rows

"""Rows of a JSON list or JSON lines, each with its place for messages."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.files import InputError, parse_json


def iterate_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads a JSON list or JSON lines of objects; the file's first character decides which.

    Yields:
        (where, row) pairs; `where` is "FILE: record N" (or "line N"), from 1, for messages.

    Raises:
        InputError: The file cannot be read, is malformed, or holds something else.
    """
    try:
        with open(path, "rb") as file:  # bytes: lines end at \n alone, JSON strings may hold U+2028
            start = len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0
            file.seek(start)
            first = next((line.strip()[:1] for line in file if line.strip()), b"")
            file.seek(start)
            for where, row in _list_rows(path, file) if first == b"[" else _line_rows(path, file):
                if not isinstance(row, dict):
                    found = type(row).__name__
                    raise InputError(f"{where}: an object was expected, found {found}")
                yield where, row
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _list_rows(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(parse_json(file.read(), str(path)), 1):
        yield f"{path}: record {number}", row


def _line_rows(path: Path, file: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield (where := f"{path}: line {number}"), parse_json(line, where)


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Reads all rows of a JSON list or JSON lines, see `iterate_rows`.

    Raises:
        InputError: Also where the file holds no rows.
    """
    rows = list(iterate_rows(path))
    if not rows:
        raise InputError(f"{path}: holds no records")
    return rows

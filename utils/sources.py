"""Judged responses from JSON, JSON lines, CSV or Parquet: columns, votes, duplicates. Streamed."""

import csv
import hashlib
import json
import re
import sqlite3
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.fineharm import text_field
from data.json_rows import iterate_rows
from utils.files import InputError

SHINGLE = 5  # words of a shingle; near duplicates share most of theirs
LONG_WORDS = 10  # characters a word, on average; above, as in Chinese, a shingle is of characters
HASHES, BANDS = 64, 16  # of MinHash: pairs of Jaccard similarity 0.9 meet with probability > 0.9999
CROWD = 32  # rows a band remembers
PRIME = (1 << 31) - 1
DEFAULT_ID = "id"  # may be missing; a column that was asked for may not


@dataclass
class Columns:
    """Which columns hold what.

    Attributes:
        prompt: Column of the prompt; "" where there is none.
        response: Column of the response.
        labels: Columns of response-level judgements, 0/1; the majority counts.
        id: Column of the id; rows without it are numbered.
        spans: Column of human [start, end) character spans of harm, in CSV a JSON list; "" where
            there is none.
    """

    prompt: str = "prompt"
    response: str = "response"
    labels: Sequence[str] = ("label",)
    id: str = DEFAULT_ID
    spans: str = ""


@dataclass
class Row:
    """One judged response.

    Attributes:
        where: Names file and record in messages.
        id: Its id.
        prompt: What was asked; "" where nobody knows.
        response: The untouched response.
        label: 1 = harmful, 0 = benign, None = the judgements are tied.
        fields: Everything the file says of it.
        spans: [start, end) of harmful characters where humans marked them.
    """

    where: str
    id: str
    prompt: str
    response: str
    label: int | None
    fields: dict[str, Any] = field(repr=False)
    spans: list[tuple[int, int]] | None = None


def iterate_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads rows one by one; only a JSON list is held as a whole.

    Args:
        path: A `.csv` or `.parquet` file; any other name is read as JSON (a list, or lines).

    Yields:
        (where, row) pairs.

    Raises:
        InputError: The file cannot be read, is malformed or empty.
    """
    readers = {".csv": _iterate_csv, ".parquet": _iterate_parquet}
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    empty = True
    for pair in readers.get(path.suffix.lower(), iterate_rows)(path):
        empty = False
        yield pair
    if empty:
        raise InputError(f"{path}: holds no records")


def _iterate_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _refuse_twins(path, reader.fieldnames or [])
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    raise InputError(
                        f"{path}: record {number}: its fields do not match the header's"
                    )
                yield f"{path}: record {number}", row
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: after line {reader.line_num}: malformed CSV: {error}") from None


def _iterate_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _refuse_twins(path, names)
            for batch in file.iter_batches(batch_size=1000):
                for values in zip(*batch.columns, strict=True):
                    number += 1
                    where = f"{path}: record {number}"
                    pairs = zip(names, values, strict=True)
                    yield where, {name: _plain(value, name, where) for name, value in pairs}
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: cannot be read as Parquet: {reason}") from None


def _plain(value: pa.Scalar, name: str, where: str) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:  # no UTF-8, a date beyond the year 9999
        reason = str(error).split("\n")[0]
        raise InputError(f"{where}: field '{name}': {reason}") from None


def _refuse_twins(path: Path, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if name in names[:position]:
            raise InputError(f"{path}: two columns are named '{name}'")


def read_judged(path: Path, columns: Columns) -> Iterator[Row]:
    """Reads and validates judged responses.

    Raises:
        InputError: At the first bad row: an unknown column, a missing field, a label outside 0/1,
            an empty response, a span outside it.
    """
    for number, (where, fields) in enumerate(iterate_file(path)):
        if number == 0:
            wanted = (columns.prompt, columns.response, *columns.labels, columns.spans)
            wanted += (columns.id,) if columns.id != DEFAULT_ID else ()
            for name in wanted:
                if name and name not in fields:
                    there = ", ".join(map(str, fields))
                    raise InputError(f"{where}: field '{name}' is missing; there are: {there}")
        response = text_field(fields, columns.response, where)
        if not response.strip():
            raise InputError(f"{where}: field '{columns.response}': the response is empty")
        spans = _spans(fields, columns.spans, len(response), where) if columns.spans else None
        if columns.labels:
            label = majority([_label(fields, name, where) for name in columns.labels])
        else:
            label = int(bool(spans))  # human spans, and nobody judged the response as a whole
        identity = fields.get(columns.id)
        identity = f"row-{number}" if identity is None else str(identity)
        yield Row(
            where,
            text_field({columns.id: identity}, columns.id, where),
            text_field(fields, columns.prompt, where) if columns.prompt else "",
            response,
            label,
            fields,
            spans,
        )


def prompt_key(text: str) -> str:
    """Returns what tells prompts apart: their words. Case, punctuation and spacing do not count."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def majority(labels: Sequence[int]) -> int | None:
    """Combines judgements of one response; None where they are tied.

    Source: arXiv 2506.09996, section on FineHarm: response labels are a majority vote.
    """
    doubled = 2 * sum(labels)
    return None if doubled == len(labels) else int(doubled > len(labels))


def _label(fields: dict[str, Any], name: str, where: str) -> int:
    value = fields.get(name)
    if value in ("0", "1"):  # CSV knows text only
        value = int(value)
    if type(value) is not int or value not in (0, 1):  # True and 1.0 are no labels
        raise InputError(f"{where}: field '{name}': {value!r:.40} is not 0/1")
    return value


def _spans(fields: dict[str, Any], name: str, length: int, where: str) -> list[tuple[int, int]]:
    spans = fields.get(name)
    if isinstance(spans, str):  # CSV knows text only
        try:
            spans = json.loads(spans)
        except (ValueError, RecursionError):
            pass
    if not isinstance(spans, list):
        raise InputError(f"{where}: field '{name}': a list of [start, end) pairs was expected")
    for position, span in enumerate(spans):
        good = isinstance(span, list | tuple) and len(span) == 2
        if not (good and all(type(edge) is int for edge in span)):
            raise InputError(f"{where}: field '{name}[{position}]': no [start, end) pair")
        if not 0 <= span[0] < span[1] <= length:
            raise InputError(f"{where}: field '{name}[{position}]': {span} is not in the response")
    return [tuple(span) for span in spans]


class Seen:
    """Remembers rows on disk: ids, exact and near duplicates. Memory does not grow with them.

    Near duplicates are found by MinHash over word shingles: the share of equal hashes estimates the
    Jaccard similarity of two texts. It has to be high between the responses (two answers to one
    long prompt are none) and between the prompts (one stock refusal to two prompts is none).

    A band, for lookup, holds hashes of both. Each band remembers its first rows only: thousands
    that share a template and an answer would otherwise all be compared with each other. What they
    do not share falls into bands of its own, by which their near duplicates are still found.

    Args:
        path: A scratch file, deleted by whoever owns its folder.
        near: Least estimated similarity of a near duplicate; 1 or more looks for exact ones only.
    """

    def __init__(self, path: Path, near: float) -> None:
        self.near = near
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID;"
            "CREATE TABLE texts (digest BLOB PRIMARY KEY, id TEXT, label INTEGER) WITHOUT ROWID;"
            "CREATE TABLE signatures"
            " (number INTEGER PRIMARY KEY, id TEXT, label INTEGER, signature BLOB);"
            "CREATE TABLE bands (band BLOB, number INTEGER, PRIMARY KEY (band, number))"
            " WITHOUT ROWID; BEGIN"
        )
        random = np.random.default_rng(0)
        self.slopes = random.integers(1, PRIME, (HASHES, 1), dtype=np.uint64)
        self.offsets = random.integers(0, PRIME, (HASHES, 1), dtype=np.uint64)

    def close(self) -> None:
        """Closes the scratch file."""
        self.connection.close()

    def check_id(self, row: Row, column: str) -> None:
        """Remembers a row's id, which stands in `column`.

        Raises:
            InputError: Another row has it.
        """
        place = row.where.rsplit(": ", 1)[-1]
        try:
            self.connection.execute("INSERT INTO ids VALUES (?, ?)", (row.id, place))
        except sqlite3.IntegrityError:
            query = "SELECT place FROM ids WHERE id = ?"
            (other,) = self.connection.execute(query, (row.id,)).fetchone()
            message = f"{row.where}: field '{column}': '{row.id}' stands at {other} too"
            raise InputError(message) from None

    def duplicate_of(self, row: Row) -> tuple[str, str] | None:
        """Looks a row up among the kept ones, and keeps it if it is new.

        Returns:
            What it is ("exact duplicate", "near duplicate", either "with another label") and the id
            of the earlier row; None for a new row. White space and case make no difference.
        """
        words = f"{row.prompt} {row.response}".casefold().split()
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        query = "SELECT id, label FROM texts WHERE digest = ?"
        if found := self.connection.execute(query, (digest,)).fetchone():
            return "exact duplicate" + " with another label" * (found[1] != row.label), found[0]
        if self.near < 1 and (found := self._near_duplicate_of(row)):
            return found
        self.connection.execute("INSERT INTO texts VALUES (?, ?, ?)", (digest, row.id, row.label))
        return None

    def _near_duplicate_of(self, row: Row) -> tuple[str, str] | None:
        prompt, response = self.signature(prompt_key(row.prompt)), self.signature(row.response)
        signatures = np.stack([prompt, response])  # [2, HASHES]
        mixed = np.where(np.arange(HASHES) % 2, prompt, response)
        bands = [
            bytes([number]) + hashlib.blake2b(part.tobytes(), digest_size=8).digest()
            for number, part in enumerate(np.split(mixed, BANDS))
        ]
        query = "SELECT number FROM bands WHERE band = ?"
        sharing = [self.connection.execute(query, (band,)).fetchall() for band in bands]
        query = "SELECT id, label, signature FROM signatures WHERE number = ?"
        for number in sorted(set().union(*sharing)):
            identity, label, stored = self.connection.execute(query, number).fetchone()
            equal = np.frombuffer(stored, np.uint32).reshape(2, HASHES) == signatures
            if (equal.mean(axis=1) >= self.near).all():
                return "near duplicate" + " with another label" * (label != row.label), identity
        insert = "INSERT INTO signatures (id, label, signature) VALUES (?, ?, ?)"
        values = (row.id, row.label, signatures.tobytes())
        number = self.connection.execute(insert, values).lastrowid
        pairs = [
            (band, number) for band, rows in zip(bands, sharing, strict=True) if len(rows) < CROWD
        ]
        self.connection.executemany("INSERT INTO bands VALUES (?, ?)", pairs)
        return None

    def signature(self, text: str) -> np.ndarray:
        """Returns the MinHash of a text's shingles, uint32 [HASHES]."""
        words = text.casefold().split()
        if len(joined := "".join(words)) > LONG_WORDS * len(words):
            words = list(joined)
        starts = range(max(1, len(words) - SHINGLE + 1))
        shingles = {zlib.crc32(" ".join(words[at : at + SHINGLE]).encode()) for at in starts}
        codes = np.fromiter(shingles, np.uint64, len(shingles)) % PRIME
        return ((self.slopes * codes + self.offsets) % PRIME).min(axis=1).astype(np.uint32)

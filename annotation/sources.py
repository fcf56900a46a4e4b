"""Judged responses from JSON, JSON lines, CSV or Parquet: columns, votes, duplicates. Streamed."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.fineharm import text_field
from data.json_rows import iterate_rows
from utils.files import InputError

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

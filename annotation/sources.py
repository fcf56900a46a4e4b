"""Judged responses from JSON, JSON lines, CSV or Parquet: columns, votes, spans. Streamed."""

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import multimode
from typing import Any

from pydantic import StrictInt, TypeAdapter

from annotation.options import BuildConfig
from data.fineharm import text_field
from data.json_rows import iterate_rows
from utils.files import InputError
from utils.validation import one_line

# how corpora spell what a judge says, in lower case; None is no vote
VOTES: dict[str, int | None] = {
    **dict.fromkeys(("1", "1.0", "true", "harmful", "unsafe", "toxic"), 1),
    **dict.fromkeys(("0", "0.0", "false", "unharmful", "harmless", "benign", "safe"), 0),
    **dict.fromkeys(("", "none", "null", "nan"), None),
}
SPANS = TypeAdapter(list[tuple[StrictInt, StrictInt]])


@dataclass
class Row:
    """One judged response."""

    where: str  # file and record, for messages
    id: str
    prompt: str  # "" where it is unknown
    response: str  # untouched
    label: int | None  # 1 = harmful, 0 = benign, None = unknown
    fields: dict[str, Any] = field(repr=False)  # all columns
    spans: list[tuple[int, int]] | None = None  # [start, end) of what humans marked as harmful
    refused: tuple[str, str] | None = None  # why it cannot be annotated, and the details


def iterate_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (where, row) pairs one by one; only a JSON list is held as a whole.

    Args:
        path: A `.csv` or `.parquet` file; any other name is read as JSON (a list, or lines).

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
                where = f"{path}: record {number}"
                if None in row or None in row.values():
                    raise InputError(f"{where}: its fields do not match the header's")
                yield where, row
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: after line {reader.line_num}: malformed CSV: {error}") from None


def _iterate_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _refuse_twins(path, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=1000)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"{path}: record {number}", row
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        where = f"{path}: after record {number}" if number else path
        raise InputError(f"{where}: cannot be read as Parquet: {reason}") from None


def _refuse_twins(path: Path, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{path}: two columns are named '{name}'")


def count_rows(config: BuildConfig) -> int:
    """Counts the rows of the input.

    Raises:
        InputError: An option names a column that no row has.
    """
    count, names = 0, {}
    for _, fields in iterate_file(Path(config.input)):
        count += 1
        names |= dict.fromkeys(fields)
    for option, name in config.columns():
        if name not in names:
            message = f"field '{name}' is in no record; there are: {', '.join(names)}"
            raise InputError(f"{config.input}: {option}: {message}")
    return count


def read_judged(config: BuildConfig) -> Iterator[Row]:
    """Reads judged responses, see `iterate_file`; those that cannot be annotated say why."""
    for number, (where, fields) in enumerate(iterate_file(Path(config.input))):
        row = Row(where, f"row-{number}", "", "", None, fields)
        try:
            _judge(row, config)
        except InputError as error:
            row.refused = ("unusable row", str(error))
        yield row


def _judge(row: Row, config: BuildConfig) -> None:
    """Fills in a row from its fields; raises InputError where one is missing or wrong."""
    fields, where = row.fields, row.where
    if (identity := fields.get(config.id_column)) is not None:
        row.id = text_field({config.id_column: str(identity)}, config.id_column, where)
    if config.prompt_column:
        row.prompt = text_field(fields, config.prompt_column, where)
    if not str(fields.get(config.response_column) or "").strip():
        row.refused = ("no response", where)
        return
    row.response = text_field(fields, config.response_column, where)
    if config.spans_column:
        row.spans = _spans(fields, config.spans_column, len(row.response), where)
        row.label = int(bool(row.spans))  # unless somebody judged the response as a whole
    if names := config.judges:
        votes = [_vote(fields.get(name), name, where) for name in names]
        given = [vote for vote in votes if vote is not None]
        row.label = majority(given)
        if row.label is None:
            row.refused = ("judgements are tied" if given else "nobody judged it", where)


def majority(labels: Sequence[int]) -> int | None:
    """Combines judgements of one response; None where they are tied.

    Source: arXiv 2506.09996, section on FineHarm: response labels are a majority vote.
    """
    most = multimode(labels)
    return most[0] if len(most) == 1 else None


def _vote(value: Any, name: str, where: str) -> int | None:
    text = str(value).strip().lower()
    if text not in VOTES:
        raise InputError(f"{where}: field '{name}': {value!r:.40} is no judgement that is known")
    return VOTES[text]


def _spans(fields: dict[str, Any], name: str, length: int, where: str) -> list[tuple[int, int]]:
    value = fields.get(name)
    validate = SPANS.validate_json if isinstance(value, str) else SPANS.validate_python
    with one_line(where, name):  # CSV knows text only
        spans = validate(value)
    for position, (start, end) in enumerate(spans):
        if not 0 <= start < end <= length:
            raise InputError(
                f"{where}: field '{name}.{position}': ({start}, {end}) is not in the response"
            )
    return spans

"""FineHarm records: where the files lie, how they are read and what makes a record valid."""

from pathlib import Path
from typing import Any, TypedDict

from data.json_rows import read_rows
from utils.files import InputError

SPLITS = ("train", "valid", "test")

# The plain name first, then the release's own file names, then a common other spelling.
FILE_STEMS = {
    "train": ("train", "train_new"),
    "valid": ("valid", "valid_new", "val"),
    "test": ("test", "test_new"),
}


class Record(TypedDict):
    """One FineHarm record. S sentences of W words each; 1 = harmful."""

    id: str
    prompt: str
    response: str
    sentences: list[str]  # [S]
    sentence_labels: list[int]  # [S]
    words: list[list[str]]  # [S][W]
    word_labels: list[list[int]]  # [S][W]


def every_word(sentence_labels: list[int], words: list[list[str]]) -> list[list[int]]:
    """Gives each word its sentence's label.

    Args:
        sentence_labels: [S] 1 = harmful.
        words: [S][W].

    Returns:
        int [S][W].
    """
    return [[label] * len(some) for label, some in zip(sentence_labels, words, strict=True)]


def find_split(folder: Path, split: str) -> Path:
    """Returns the file of `split` in a FineHarm folder.

    Raises:
        InputError: The folder or the split is missing, or two files claim to be the split.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; FineHarm/README.md says what to download and where to put"
            " it, FineHarm/sample holds a small corpus"
        )
    stems = FILE_STEMS[split]
    names = [f"{stem}{suffix}" for stem in stems for suffix in (".json", ".jsonl")]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise InputError(f"{folder}: no file of split '{split}' (looked for {', '.join(names)})")
    if len(found) > 1:
        both = " and ".join(path.name for path in found)
        raise InputError(f"{folder}: {both} both claim to be split '{split}'; keep one")
    return found[0]


def text_field(row: dict[str, Any], name: str, where: str) -> str:
    """Returns a string field of a row.

    Raises:
        InputError: The field is missing or no string, or cannot be written as UTF-8.
    """
    value = row.get(name)
    if value is None:
        raise InputError(f"{where}: field '{name}' is missing")
    if not isinstance(value, str):
        raise InputError(f"{where}: field '{name}': a string was expected, found {value!r:.40}")
    _check_text(value, name, where)
    return value


def _check_text(value: str, name: str, where: str) -> None:
    """Refuses half a surrogate pair: JSON can escape one, but no tokenizer takes it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: field '{name}': lone surrogate at character {error.start}"
        ) from None


def _strings(value: Any, name: str, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where}: field '{name}': a list of strings was expected")
    for item in value:
        if not item.isascii():
            _check_text(item, name, where)
    return value


def _labels(value: Any, name: str, where: str, length: int, of: str) -> list[int]:
    if not isinstance(value, list):
        raise InputError(f"{where}: field '{name}': a list of labels was expected")
    if len(value) != length:
        raise InputError(f"{where}: field '{name}': {len(value)} labels for {length} {of}")
    for position, label in enumerate(value):
        if type(label) is not int or label not in (0, 1):  # True and 1.0 are no labels
            raise InputError(f"{where}: field '{name}[{position}]': label {label!r:.40} is not 0/1")
    return value


def check_record(row: dict[str, Any], where: str, default_id: str) -> Record:
    """Validates one row.

    Args:
        row: A decoded JSON object.
        where: Names file and record in messages.
        default_id: Used where the row has no `id` of its own.

    Returns:
        The record, with the fields of `Record` alone.

    Raises:
        InputError: A field is missing or of the wrong type, lengths disagree, a label is not 0/1,
            or the response is empty.
    """
    prompt, response = text_field(row, "prompt", where), text_field(row, "response", where)
    for name in ("sentences", "sentence_labels", "words", "word_labels"):
        if row.get(name) is None:
            raise InputError(f"{where}: field '{name}' is missing")
    sentences = _strings(row["sentences"], "sentences", where)
    if not response.strip() or not any(sentence.strip() for sentence in sentences):
        name = "sentences" if response.strip() else "response"
        raise InputError(f"{where}: field '{name}': the response is empty")
    count = len(sentences)
    labels = _labels(row["sentence_labels"], "sentence_labels", where, count, "sentences")
    for name in ("words", "word_labels"):
        if not isinstance(row[name], list) or len(row[name]) != count:
            found = f"{len(row[name])} lists" if isinstance(row[name], list) else "no list"
            raise InputError(f"{where}: field '{name}': {found} for {count} sentences")
    words, word_labels = [], []
    for position, (some_words, some_labels) in enumerate(
        zip(row["words"], row["word_labels"], strict=True)
    ):
        name = f"words[{position}]"
        words.append(_strings(some_words, name, where))
        name = f"word_labels[{position}]"
        word_labels.append(_labels(some_labels, name, where, len(some_words), "words"))
    identity = row.get("id")
    return Record(
        id=default_id if identity is None else str(identity),
        prompt=prompt,
        response=response,
        sentences=sentences,
        sentence_labels=labels,
        words=words,
        word_labels=word_labels,
    )


def read_split(path: Path, split: str) -> list[tuple[str, Record]]:
    """Reads and validates one split.

    Returns:
        (where, record) pairs in file order; `where` names file and record for later messages.

    Raises:
        InputError: At the first bad record; or two records share an id.
    """
    records, seen = [], {}
    for number, (where, row) in enumerate(read_rows(path)):
        record = check_record(row, where, default_id=f"{split}-{number}")
        if record["id"] in seen:
            raise InputError(
                f"{where}: field 'id': '{record['id']}' stands at {seen[record['id']]} too"
            )
        seen[record["id"]] = where.rsplit(": ", 1)[-1]
        records.append((where, record))
    return records

"""FineHarm records: where the files lie, how they are read and what makes a record valid."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from data.json_rows import read_rows
from utils.files import InputError
from utils.validation import one_line

SPLITS = ("train", "valid", "test")

# The plain name first, then the release's own file names, then a common other spelling.
FILE_STEMS = {
    "train": ("train", "train_new"),
    "valid": ("valid", "valid_new", "val"),
    "test": ("test", "test_new"),
}


# the bound makes pydantic refuse half a surrogate pair, which no tokenizer takes
Text = Annotated[str, Field(min_length=0)]
Label = Annotated[int, Field(ge=0, le=1)]  # Literal[0, 1] would take True and 1.0


class Record(TypedDict):
    """One FineHarm record. S sentences of W words each; 1 = harmful."""

    id: Text
    prompt: Text
    response: Text
    sentences: list[Text]  # [S]
    sentence_labels: list[Label]  # [S]
    words: list[list[Text]]  # [S][W]
    word_labels: list[list[Label]]  # [S][W]


TEXT, RECORD = TypeAdapter(Text), TypeAdapter(Record)


def every_word(sentence_labels: list[int], words: list[list[str]]) -> list[list[int]]:
    """Gives each of the words [S][W] its sentence's label, int [S][W]."""
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
    if row.get(name) is None:
        raise InputError(f"{where}: field {name!r} is missing")
    with one_line(where, name):
        return TEXT.validate_python(row[name], strict=True)


def check_record(row: dict[str, Any], where: str, default_id: str) -> Record:
    """Returns a valid row as a record, with the fields of `Record` alone.

    Args:
        row: A decoded JSON object; `default_id` is its id if it names none.
        where: Names file and record in messages.

    Raises:
        InputError: A field is missing or of the wrong type, lengths disagree, a label is not 0/1,
            or the response is empty.
    """
    record = {name: row[name] for name in Record.__annotations__ if row.get(name) is not None}
    record["id"] = str(record.get("id", default_id))
    with one_line(where):
        RECORD.validate_python(record, strict=True)  # its copy would cost more than the check
    for name in ("response", "sentences"):
        if not any(part.strip() for part in record[name]):
            raise InputError(f"{where}: field '{name}': the response is empty")
    count = len(record["sentences"])
    for name in ("sentence_labels", "words", "word_labels"):
        if len(record[name]) != count:
            found = len(record[name])
            raise InputError(f"{where}: field '{name}': {found} items for {count} sentences")
    for position, words in enumerate(record["words"]):
        found = len(record["word_labels"][position])
        if found != len(words):
            name = f"word_labels.{position}"
            raise InputError(f"{where}: field '{name}': {found} labels for {len(words)} words")
    return record


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

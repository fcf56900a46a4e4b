"""What pydantic finds wrong with a value, as one line that names file, record and field."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ConfigDict, ValidationError

from utils.files import InputError

STRICT = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)
TOLD = {  # in words of our own, by type of error
    "missing": " is missing",
    "unexpected_keyword_argument": " is unknown",
    "string_unicode": ": lone surrogate",
}


@contextmanager
def one_line(where: str, field: str = "") -> Iterator[None]:
    """Raises the first error of a `ValidationError` as an `InputError`.

    Args:
        where: Names file and record.
        field: The field whose value is validated; "" where the value holds fields itself.

    Raises:
        InputError: Such as "a.json: record 3: field 'word_labels.0.3': input should be a valid
            integer, found '1'".
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, [field, *first["loc"]])).strip(".")
        text = first["msg"].removeprefix("Value error, ")
        told = f": {text[0].lower()}{text[1:]}, found {first['input']!r:.40}"
        told = TOLD.get(first["type"], told)
        raise InputError(f"{where}: field {place!r}{told}" if place else f"{where}{told}") from None

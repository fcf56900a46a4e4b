"""JSON as the service reads and writes it: whatever is read can be written again."""

import json
import math

from starlette.responses import Response


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is not finite")
    return number


def read_json(text: str | bytes) -> object:
    """Reads JSON; raises ValueError where it is none, NaN and Infinity included, or too deep."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def as_json(value: object) -> bytes:
    """Returns a value as compact JSON; halves of characters are escaped."""
    options = {"separators": (",", ":"), "allow_nan": False}
    try:
        return json.dumps(value, ensure_ascii=False, **options).encode()
    except UnicodeEncodeError:
        return json.dumps(value, **options).encode()


def reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns an answer of JSON."""
    return Response(as_json(value), status, headers, "application/json")

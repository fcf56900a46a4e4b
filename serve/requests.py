"""Requests: bodies read and refused, in the words of OpenAI's API."""

from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from serve.chunks import Kind
from serve.json_text import read_json, reply

PromptFrom = Literal["last-user", "conversation"]
RETRY_AFTER = 2  # seconds


class Refused(Exception):
    """A request is answered with an error.

    Attributes:
        status: HTTP status.
        body: The answer.
        retry_after: Seconds after which another try may succeed; None for none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        body: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.body = {"error": error} if body is None else body

    def response(self) -> Response:
        """Returns the answer."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else None
        return reply(self.body, self.status, headers)


def unavailable(message: str, code: str = "overloaded", retry_after: int = RETRY_AFTER) -> Refused:
    """Returns what refuses a request that may succeed later, or elsewhere."""
    return Refused(503, message, kind="server_error", code=code, retry_after=retry_after)


def shutting_down() -> Refused:
    """Returns what refuses a request while the service closes."""
    return unavailable("the service is closing", "shutting_down")


@dataclass
class Ask:
    """A request for an answer.

    Attributes:
        kind: Of the endpoint.
        body: For the upstream: the client's fields, without those that are ours.
        prompts: What each choice answers.
        count: Choices of each prompt, side by side.
        tools: Names of the tools that it offers.
        stream: The client wants chunks.
        moderation: It wants OpenAI's moderation object.
        scores: It wants the tokens' scores.
    """

    kind: Kind
    body: dict[str, Any]
    prompts: list[str]
    count: int
    tools: frozenset[str]
    stream: bool
    moderation: bool
    scores: bool


async def read_body(request: Request, most: int) -> bytes:
    """Reads a body of at most so many bytes; raises Refused for a longer one."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > most:
            raise Refused(413, f"the body is longer than {most} bytes", code="too_large")
    return content


async def read_object(request: Request, most: int) -> dict[str, Any]:
    """Reads a body that is a JSON object.

    Raises:
        Refused: It is none, or too long.
    """
    return as_object(await read_body(request, most), "body")


def as_object(content: bytes | str, what: str) -> dict[str, Any]:
    """Reads JSON that is an object; raises Refused, which calls it `what`, where it is none."""
    try:
        body = read_json(content)
    except ValueError:
        raise Refused(400, f"the {what} is no JSON", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refused(400, f"the {what} is no JSON object", code="invalid_json")
    return body


def take(
    body: dict[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None
) -> Any:
    """Returns a field of a type, or the default where it lacks or is null."""
    value = body.get(name)
    if value is None:
        return default
    is_kind = isinstance(value, kind) and not (isinstance(value, bool) and kind is int)
    if not is_kind:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(NAMES[one] for one in kinds)
        raise Refused(400, f"field '{name}': {expected} was expected", param=name)
    return value


NAMES = {
    str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object",
}  # fmt: skip


def read_ask(body: dict[str, Any], kind: Kind, prompt_from: PromptFrom, places: int) -> Ask:
    """Reads a request for an answer.

    Args:
        body: The request's.
        kind: Of the endpoint.
        prompt_from: What counts as the prompt of a conversation.
        places: Most choices.

    Raises:
        Refused: A field is missing, of another type or out of range.
    """
    rest = dict(body)
    count = take(rest, "n", int, 1)
    stream = take(rest, "stream", bool, False)
    options = take(rest, "stream_options", dict, {})
    moderation = rest.pop("moderation", None) is not None
    scores = take(take(rest, "scm", dict, {}), "scores", bool, False)
    rest.pop("scm", None)
    prompts = _messages(rest, prompt_from) if kind == "chat" else _prompts(rest)
    if count < 1 or count * len(prompts) > places:
        raise Refused(400, f"field 'n': 1 to {places} choices can be followed", param="n")
    if not stream or options.get("include_usage"):
        rest["stream_options"] = options | {"include_usage": True}
    prompts = [prompt for prompt in prompts for _ in range(count)]
    return Ask(kind, rest, prompts, count, _tools(rest), stream, moderation, scores)


def _tools(body: dict[str, Any]) -> frozenset[str]:
    """Returns the names of the tools that a request offers; the upstream says what is wrong."""
    tools, names = [], []
    for field in ("tools", "functions"):
        tools += body[field] if isinstance(body.get(field), list) else []
    for tool in tools:
        own = tool.get("function", tool) if isinstance(tool, dict) else None
        names.append(own.get("name") if isinstance(own, dict) else None)
    return frozenset(name for name in names if isinstance(name, str) and len(name) <= 128)


def _messages(body: dict[str, Any], prompt_from: PromptFrom) -> list[str]:
    messages = take(body, "messages", list, [])
    if not messages:
        raise Refused(400, "field 'messages': a list of messages was expected", param="messages")
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(
                400, f"field 'messages[{number}]': an object with a role was expected",
                param="messages",
            )  # fmt: skip
        turns.append((message["role"], _content(message.get("content"), number)))
    if prompt_from == "conversation":
        return ["\n\n".join(f"{role}: {text}" for role, text in turns if text)]
    asked = [text for role, text in reversed(turns) if role == "user"]
    said = next((text for text in asked if text.strip()), None)  # a blank one asks nothing
    return [turns[-1][1] if said is None else said]


def _content(content: object, number: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refused(
            400, f"field 'messages[{number}].content': text or a list of parts was expected",
            param="messages",
        )  # fmt: skip
    texts = [part.get("text") for part in content]
    return "\n".join(text for text in texts if isinstance(text, str))


def _prompts(body: dict[str, Any]) -> list[str]:
    prompt = take(body, "prompt", (str, list), "")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts or not all(isinstance(one, str) for one in prompts):
        raise Refused(400, "field 'prompt': text or a list of texts was expected", param="prompt")
    return prompts

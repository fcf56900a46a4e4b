"""Chunks of an OpenAI-compatible stream: the text of each channel out, released text in again.

A chunk is a dictionary and stays one, so that the fields of vendors survive. What a client is shown
was judged, but for what cannot hold a model's words: a field passes unjudged only if its value is a
number, true, false or empty, or if it is one of the fields below and holds names and numbers.
Whatever else comes is withheld.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["chat", "text"]  # /v1/chat/completions, /v1/completions
Channel = tuple[str | int, ...]  # where in a choice the text lies

CONTENT: dict[Kind, Channel] = {"chat": ("delta", "content"), "text": ("text",)}
TEXTS = ("reasoning_content", "reasoning", "refusal", "content")  # of a delta, in reading order
OBJECTS: dict[Kind, str] = {"chat": "chat.completion.chunk", "text": "text_completion"}

# Fields of servers that may hold names.
CONSTANT = set("id object model system_fingerprint service_tier provider".split())
FIGURES = set("usage timings prompt_filter_results".split())
OF_A_CHOICE = set(
    "native_finish_reason stop_reason matched_stop content_filter_results"
    " content_filter_offsets".split()
)
ROLES = {"assistant", "system", "user", "tool", "developer", "function", "model"}
CALL_TYPES = {"function", "custom"}
MOST_CALLS = 128  # tool calls of a choice

NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,128}")
LABEL = re.compile(rf"{NAME.pattern}(?: [A-Za-z0-9_.:/@+()-]{{1,32}}){{0,5}}")  # of `CONSTANT`
PIECES = re.compile("token|byte|char", re.IGNORECASE)  # a number of these may be a piece of text
# What of a choice is text, to be joined where chunks are assembled.
JOINED = {*TEXTS, "text", "arguments", "name"}
LISTS = set("content tokens token_logprobs top_logprobs text_offset".split())  # of logprobs
# The same thoughts under the old and the new name, as some servers send them, are one channel.
BOTH: Channel = ("delta", "reasoning_content=reasoning")


class BadChunk(ValueError):
    """An event of the upstream is no chunk; the message holds nothing of it."""


@dataclass
class Part:
    """What a chunk adds to one choice.

    Attributes:
        index: The choice's.
        added: Channel and text (no empty one), or the place of a tool call and its head (the delta
            without name and arguments), in reading order.
        plain: Fields of the choice that need no judgement; a delta's lie in its field `delta`.
        logprobs: Those of the content's tokens, as they came; None for none.
        finish_reason: Why the choice ended, if it did.
        withheld: Names of the fields that were not passed on.
    """

    index: int
    added: list[tuple[Channel, str | dict[str, Any]]] = field(default_factory=list)
    plain: dict[str, Any] = field(default_factory=dict)
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    withheld: list[str] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The texts among what was added."""
        return [one for _, one in self.added if isinstance(one, str)]


def is_number(value: object) -> bool:
    """Tells numbers from true and false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_name(value: object) -> bool:
    """Tells whether a value is a name: ASCII, no white space."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def is_plain(name: str, value: object) -> bool:
    """Tells whether the value of an unknown field holds no text: it is a number, a truth or empty.

    A lone number passes only where the field's name does not say that it is a piece of text.
    """
    if is_number(value):
        return is_name(name) and not PIECES.search(name)
    return is_name(name) and (not value or value is True)


def holds_names(value: object) -> bool:
    """Tells whether the value of a known field holds nothing but names and numbers.

    A list may hold objects alone: names or numbers in a row may spell a text.
    """
    if isinstance(value, dict):
        return all(is_name(name) and holds_names(one) for name, one in value.items())
    if isinstance(value, list):
        return all(isinstance(one, dict) and holds_names(one) for one in value)
    return value is None or value == "" or isinstance(value, bool | int | float) or is_name(value)


def plain_fields(fields: dict[str, Any], known: set[str], withheld: list[str]) -> dict[str, Any]:
    """Returns the fields that hold no text of the model; notes the names of the others.

    Args:
        fields: Of a chunk or a part of it.
        known: Those that may hold names.
        withheld: Where to note what is left out.
    """
    kept = {}
    for name, value in fields.items():
        if holds_names(value) if name in known else is_plain(name, value):
            kept[name] = value
        else:
            withheld.append(name)
    return kept


def read_chunk(
    chunk: object, kind: Kind, tools: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], list[Part], list[str]]:
    """Takes a chunk apart.

    Args:
        chunk: The upstream's.
        kind: Of the endpoint.
        tools: Names of the tools that the request offers; any other name is text.

    Returns:
        The chunk without its choices, what it adds to each choice, and the names of the fields that
        were withheld outside of choices.

    Raises:
        BadChunk: It is no chunk.
    """
    if not isinstance(chunk, dict):
        raise BadChunk("an event is no JSON object")
    choices = chunk.get("choices") or []
    if not isinstance(choices, list):
        raise BadChunk("field 'choices': a list was expected")
    withheld: list[str] = []
    rest, labels = {}, {}
    for name, value in chunk.items():
        if name in CONSTANT and isinstance(value, str) and LABEL.fullmatch(value):
            labels[name] = value
        elif name not in ("choices", "error"):  # a chunk with an error does not come here
            rest[name] = value
    try:
        return (
            labels | plain_fields(rest, FIGURES, withheld),
            [_part(one, kind, tools) for one in choices],
            withheld,
        )
    except RecursionError:
        raise BadChunk("an event is nested too deep") from None


def _part(choice: object, kind: Kind, tools: frozenset[str]) -> Part:
    if not isinstance(choice, dict):
        raise BadChunk("field 'choices': a list of objects was expected")
    finish = choice.get("finish_reason") or None  # some servers send "" for none
    if finish is not None and not is_name(finish):
        raise BadChunk("field 'choices.finish_reason': a name was expected")
    part = Part(_index(choice, "choices", 0, 1 << 31), finish_reason=finish)
    taken = {"index", "delta", "message", "text", "logprobs", "finish_reason"}
    rest = {name: value for name, value in choice.items() if name not in taken}
    part.plain = plain_fields(rest, OF_A_CHOICE, part.withheld)
    logprobs = choice.get("logprobs")
    part.logprobs = logprobs if isinstance(logprobs, dict) else None
    if kind == "text":
        _take_text(part, CONTENT[kind], choice.get("text"))
        return part
    delta = choice.get("delta")
    if delta is None:
        delta = choice.get("message") or {}  # of a server that answers whole all the same
    if not isinstance(delta, dict):
        raise BadChunk("field 'choices.delta': an object was expected")
    thoughts = delta.get("reasoning_content")
    mirrored = isinstance(thoughts, str) and thoughts == delta.get("reasoning")
    if mirrored:
        _take_text(part, BOTH, thoughts)
    for name in TEXTS[2:] if mirrored else TEXTS:
        _take_text(part, ("delta", name), delta.get(name))
    calls = delta.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadChunk("field 'choices.delta.tool_calls': a list was expected")
    for place, call in enumerate(calls):
        _take_call(part, call, place, tools)
    _take_function(part, ("delta", "function_call"), delta.get("function_call"), tools)
    taken = {*TEXTS, "tool_calls", "function_call", "role"}
    rest = {name: value for name, value in delta.items() if name not in taken}
    kept = plain_fields(rest, set(), part.withheld)
    if kept := _named(delta, {"role": ROLES}, part.withheld) | kept:
        part.plain["delta"] = kept
    return part


def _index(fields: dict[str, Any], where: str, default: int, most: int) -> int:
    index = fields.get("index", default)
    if type(index) is not int or not 0 <= index < most:
        raise BadChunk(f"field '{where}.index': a number from 0 to {most - 1} was expected")
    return index


def _named(
    fields: dict[str, Any], known: dict[str, set[str] | None], withheld: list[str]
) -> dict[str, str]:
    """Returns the known fields that hold a name, one of the given where there are any."""
    kept = {}
    for name, names in known.items():
        value = fields.get(name)
        if is_name(value) and (names is None or value in names):
            kept[name] = value
        elif value:
            withheld.append(name)
    return kept


def _take_text(part: Part, channel: Channel, value: object) -> None:
    if isinstance(value, str) and value:
        part.added.append((channel, value))
    elif value:
        part.withheld.append(str(channel[-1]))


def _take_call(part: Part, call: object, place: int, tools: frozenset[str]) -> None:
    if not isinstance(call, dict):
        raise BadChunk("field 'choices.delta.tool_calls': a list of objects was expected")
    index = _index(call, "choices.delta.tool_calls", place, MOST_CALLS)
    rest = {n: value for n, value in call.items() if n not in ("function", "index", "id", "type")}
    head = _named(call, {"id": None, "type": CALL_TYPES}, part.withheld)
    head |= plain_fields(rest, set(), part.withheld)
    _take_function(part, ("delta", "tool_calls", index), call.get("function"), tools, head)


def _take_function(
    part: Part, at: Channel, function: object, tools: frozenset[str], head: dict | None = None
) -> None:
    """Takes a function's name and arguments; a name that the request did not offer is text."""
    if function is not None and not isinstance(function, dict):
        raise BadChunk(f"field 'choices.{at[1]}': an object was expected")
    function = dict(function or {})
    arguments, name = function.pop("arguments", None), function.pop("name", None)
    own = plain_fields(function, set(), part.withheld)
    if offered := isinstance(name, str) and name in tools:
        own = {"name": name} | own
    inner: Channel = ()
    if head is not None:
        inner = ("function",)
        own = head | ({"function": own} if own else {})
    if own:
        part.added.append((at, own))
    if not offered:
        _take_text(part, (*at, *inner, "name"), name)
    _take_text(part, (*at, *inner, "arguments"), arguments)


def as_delta(channel: Channel, value: object) -> dict[str, Any]:
    """Returns fields of a choice that hold a value in a channel, or a head at its place."""
    if channel[0] != "delta":
        return {"text": value}
    if channel == BOTH:
        return {"delta": dict.fromkeys(("reasoning_content", "reasoning"), value)}
    if channel[1] != "tool_calls":
        for name in reversed(channel[1:]):
            value = {name: value}
        return {"delta": value}
    for name in reversed(channel[3:]):
        value = {name: value}
    return {"delta": {"tool_calls": [{"index": channel[2], **value}]}}


def no_text(kind: Kind) -> dict[str, Any]:
    """Returns the fields of a choice that adds no text, such as its last one."""
    return {"delta": {}} if kind == "chat" else {"text": ""}


def name_of(channel: Channel) -> str:
    """Returns a channel's name for reports: content, reasoning, tool_calls.0, …"""
    if channel == BOTH:
        return "reasoning"
    names = [str(name) for name in channel if name not in ("delta", "function", "arguments")]
    return "content" if names == ["text"] else ".".join(names)


def merge(target: dict[str, Any], addition: dict[str, Any]) -> None:
    """Adds a choice's fields to what is there: texts are joined, tool calls by their index."""
    for name, value in addition.items():
        known = target.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            merge(known, value)
        elif name in JOINED and isinstance(known, str) and isinstance(value, str):
            target[name] = known + value
        elif name == "tool_calls" and isinstance(value, list):
            calls = target.setdefault(name, [])
            for call in value:
                same = next((one for one in calls if one["index"] == call["index"]), None)
                if same is None:
                    calls.append({**call, "function": dict(call.get("function") or {})})
                else:
                    merge(same, {key: some for key, some in call.items() if key != "index"})
        elif name in LISTS and isinstance(known, list) and isinstance(value, list):
            target[name] = known + value
        elif value is not None or known is None:
            target[name] = value


def assemble(chunks: Iterator[dict[str, Any]], kind: Kind) -> dict[str, Any]:
    """Joins the chunks of a stream to the answer of a request that asked for none."""
    whole: dict[str, Any] = {"choices": []}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.get("choices") or []:
            own = choices.setdefault(choice["index"], {"index": choice["index"]})
            merge(own, {name: value for name, value in choice.items() if name != "index"})
        scm = chunk.get("scm")
        whole |= {k: v for k, v in chunk.items() if k not in ("choices", "scm") and v is not None}
        if scm:
            whole.setdefault("scm", []).append(scm)
    for index in sorted(choices):
        choice = choices[index]
        if kind == "chat":
            delta = choice.pop("delta", {})
            said = None if delta.keys() & {"tool_calls", "function_call", "refusal"} else ""
            message = {"role": "assistant", "content": said} | delta
            for call in message.get("tool_calls", []):
                call.pop("index", None)
                call["function"] = {"name": "", "arguments": ""} | call["function"]
            choice = {"index": index, "message": message} | choice
        whole["choices"].append({"logprobs": None, "finish_reason": None} | choice)
    whole["object"] = "chat.completion" if kind == "chat" else OBJECTS[kind]
    return whole

"""Chunks of an OpenAI-compatible stream: the text of each channel out, released text in again.

A chunk is a dictionary and stays one, so that the fields of vendors survive. What a client is shown
should have been judged. So a field is passed on unjudged only if it is known as plain, is a name,
or has no text among its values; any other is withheld. docs/serving.md names what this lets
through.
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

# Fields that hold text, but none of the model's own.
PLAIN_TOP = set(
    "id object created model system_fingerprint service_tier provider usage timings"
    " prompt_filter_results".split()
)
PLAIN_CHOICE = set(
    "native_finish_reason stop_reason matched_stop content_filter_results"
    " content_filter_offsets".split()
)
NAME = re.compile(r"[\w.:/+-]{1,128}")  # of what is passed on as a name: a role, a tool, an id
# The same thoughts under the old and the new name, as some servers send them, are one channel.
BOTH: Channel = ("delta", "reasoning_content=reasoning")


class BadChunk(ValueError):
    """An event of the upstream is no chunk; the message holds nothing of it."""


@dataclass
class Part:
    """What a chunk adds to one choice.

    Attributes:
        index: The choice's.
        texts: Channel and text, in reading order; no empty ones.
        heads: Tool calls that begin: their deltas without arguments, as the field `tool_calls` or
            `function_call` of a delta.
        plain: Fields of the choice that need no judgement; a delta's lie in its field `delta`.
        logprobs: Those of the content's tokens, as they came; None for none.
        finish_reason: Why the choice ended, if it did.
        withheld: Names of the fields that were not passed on.
    """

    index: int
    texts: list[tuple[Channel, str]] = field(default_factory=list)
    heads: list[tuple[Channel, dict[str, Any]]] = field(default_factory=list)
    plain: dict[str, Any] = field(default_factory=dict)
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None
    withheld: list[str] = field(default_factory=list)


def holds_text(value: object) -> bool:
    """Tells whether a JSON value may hold text of a model: a string, or a list of token ids."""
    if isinstance(value, str):
        return bool(value)
    if isinstance(value, dict):
        return any(map(holds_text, value.values()))
    if isinstance(value, list):
        return any(holds_text(one) or _is_number(one) for one in value)
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def plain_fields(
    fields: dict[str, Any], known: set[str], names: set[str], withheld: list[str]
) -> dict[str, Any]:
    """Returns the fields that hold no text of the model; notes the names of the others.

    Args:
        fields: Of a chunk or a part of it.
        known: Those that may hold any.
        names: Those that may hold a name.
        withheld: Where to note what is left out.
    """
    kept = {}
    for name, value in fields.items():
        is_name = name in names and isinstance(value, str) and NAME.fullmatch(value)
        if name in known or is_name or not holds_text(value):
            kept[name] = value
        else:
            withheld.append(name)
    return kept


def read_chunk(chunk: object, kind: Kind) -> tuple[dict[str, Any], list[Part], list[str]]:
    """Takes a chunk apart.

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
    rest = {name: value for name, value in chunk.items() if name != "choices"}
    return (
        plain_fields(rest, PLAIN_TOP, set(), withheld),
        [_part(one, kind) for one in choices],
        withheld,
    )


def _part(choice: object, kind: Kind) -> Part:
    if not isinstance(choice, dict):
        raise BadChunk("field 'choices': a list of objects was expected")
    index = choice.get("index", 0)
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise BadChunk("field 'choices.index': a number from 0 was expected")
    finish = choice.get("finish_reason")
    if finish is not None and not (isinstance(finish, str) and NAME.fullmatch(finish)):
        raise BadChunk("field 'choices.finish_reason': a name was expected")
    part = Part(index, finish_reason=finish)
    taken = {"index", "delta", "message", "text", "logprobs", "finish_reason"}
    rest = {name: value for name, value in choice.items() if name not in taken}
    part.plain = plain_fields(rest, PLAIN_CHOICE, set(), part.withheld)
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
        _take_call(part, call, place)
    _take_function(part, ("delta", "function_call"), delta.get("function_call"))
    taken = {*TEXTS, "tool_calls", "function_call"}
    rest = {name: value for name, value in delta.items() if name not in taken}
    if kept := plain_fields(rest, set(), {"role"}, part.withheld):
        part.plain["delta"] = kept
    return part


def _take_text(part: Part, channel: Channel, value: object) -> None:
    if isinstance(value, str) and value:
        part.texts.append((channel, value))
    elif holds_text(value):
        part.withheld.append(str(channel[-1]))


def _take_call(part: Part, call: object, place: int) -> None:
    if not isinstance(call, dict):
        raise BadChunk("field 'choices.delta.tool_calls': a list of objects was expected")
    index = call.get("index", place)
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise BadChunk("field 'choices.delta.tool_calls.index': a number from 0 was expected")
    rest = {name: value for name, value in call.items() if name != "function"}
    head = plain_fields(rest, set(), {"id", "type"}, part.withheld)
    _take_function(part, ("delta", "tool_calls", index), call.get("function"), head)


def _take_function(
    part: Part, at: Channel, function: object, head: dict[str, Any] | None = None
) -> None:
    """Takes a function's name and arguments; the name, which the model wrote, passes."""
    if function is not None and not isinstance(function, dict):
        raise BadChunk(f"field 'choices.{at[1]}': an object was expected")
    function = dict(function or {})
    arguments = function.pop("arguments", None)
    name = plain_fields(function, set(), {"name"}, part.withheld)
    own = {one: value for one, value in (head or {}).items() if one != "index"}
    if own or name:
        part.heads.append((at, {**own, **({"function": name} if head is not None else name)}))
    inner = ("function", "arguments") if head is not None else ("arguments",)
    _take_text(part, (*at, *inner), arguments)


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
    """Adds a choice's delta to what is there: texts are joined, tool calls by their index."""
    for name, value in addition.items():
        known = target.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            merge(known, value)
        elif isinstance(known, str) and isinstance(value, str) and name not in ("role", "id"):
            target[name] = known + value
        elif name == "tool_calls" and isinstance(value, list):
            calls = target.setdefault(name, [])
            for call in value:
                same = next((one for one in calls if one["index"] == call["index"]), None)
                if same is None:
                    calls.append({**call, "function": dict(call.get("function") or {})})
                else:
                    merge(same, {key: some for key, some in call.items() if key != "index"})
        elif isinstance(known, list) and isinstance(value, list):
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
            message = {"role": "assistant", "content": None} | choice.pop("delta", {})
            for call in message.get("tool_calls", []):
                call.pop("index", None)
            choice = {"index": index, "message": message} | choice
        whole["choices"].append({"logprobs": None, "finish_reason": None} | choice)
    whole["object"] = "chat.completion" if kind == "chat" else OBJECTS[kind]
    return whole

"""OpenAI's POST /v1/moderations: whole texts."""

import asyncio
from typing import Any
from uuid import uuid4

from serve.engine import Engine
from serve.requests import Refused
from serve.verdicts import moderation_result

MOST = 32  # texts of a request


async def moderate(engine: Engine, body: dict[str, Any]) -> dict[str, Any]:
    """Answers a request; `input` is text, a list of texts, or a list of parts.

    Texts are judged as responses to an empty prompt.

    Raises:
        Refused: A field is of another type, there are too many texts, or no place.
    """
    texts = read_input(body.get("input"))
    waiting = asyncio.Semaphore(engine.places)

    async def result(text: str) -> dict[str, Any]:
        async with waiting:
            verdict, _ = await engine.judge("", text)
        return moderation_result(verdict.stopped, engine.nearness(verdict))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(result(text)) for text in texts]
    results = [task.result() for task in tasks]
    return {"id": f"modr-{uuid4().hex}", "model": engine.name, "results": results}


def read_input(given: object) -> list[str]:
    """Returns the texts of the field `input`."""
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, list) and texts and all(isinstance(one, dict) for one in texts):
        parts = [one.get("text") for one in texts if one.get("type") == "text"]
        if len(parts) < len(texts) or not all(isinstance(part, str) for part in parts):
            raise Refused(400, "field 'input': only parts of text can be judged", param="input")
        texts = ["\n".join(parts)]
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise Refused(400, "field 'input': text or a list of texts was expected", param="input")
    if len(texts) > MOST:
        raise Refused(400, f"field 'input': at most {MOST} texts", param="input")
    return texts

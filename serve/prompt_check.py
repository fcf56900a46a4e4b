"""The prompt's check, before anything of the answer leaves: a plug, asked while the LLM is."""

from dataclasses import dataclass
from typing import Protocol

import httpx2

from monitor.batcher import BatchedStream
from monitor.verdicts import PromptVerdict
from serve.engine import Engine
from serve.json_text import as_json, read_json


class CheckFailed(RuntimeError):
    """The prompt could not be checked."""


@dataclass(frozen=True)
class Checked:
    """What a check says of a prompt.

    Attributes:
        flagged: It counts as harmful.
        score: How harmful it is, 0 to 1.
        blocked: It is not to be answered.
        verdict: The moderator's, where that judged it.
        stream: Where the monitor has read the prompt already, the answer's stream.
    """

    flagged: bool
    score: float
    blocked: bool
    verdict: PromptVerdict | None = None
    stream: BatchedStream | None = None


class PromptCheck(Protocol):
    """Judges prompts."""

    async def check(self, prompt: str) -> Checked | None:
        """Judges a prompt; None: nothing is known of it.

        Raises:
            CheckFailed: It could not be checked.
            Refused: The monitor failed, or has no place.
        """

    async def close(self) -> None:
        """Frees what it holds."""


class NoCheck:
    """Lets every prompt pass."""

    async def check(self, prompt: str) -> None:
        """See `PromptCheck`."""

    async def close(self) -> None:
        """See `PromptCheck`."""


class ModeratorCheck:
    """Asks the monitor's own moderator, which judges what the monitor reads anyway.

    The place of the answer's stream must be taken. The stream goes on from there: it does not read
    the prompt again. Further choices of one prompt do, and further channels of a choice.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def check(self, prompt: str) -> Checked | None:
        """See `PromptCheck`."""
        try:
            stream = await self._engine.batcher.open(prompt)
        except Exception as error:
            raise self._engine.refusal(error) from None
        verdict = stream.stream.verdict()
        if verdict.prompt is None:
            stream.leave()  # an empty prompt, which the choice reads
            return None
        said = verdict.prompt
        return Checked(said.flagged, said.score, verdict.stopped, said, stream)

    async def close(self) -> None:
        """See `PromptCheck`."""


class ModerationsCheck:
    """Asks a /v1/moderations endpoint.

    Args:
        url: Where its API begins, such as http://127.0.0.1:8001/v1.
        key: Its key; None for none.
        timeout: Seconds that it may take.
        transport: For tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        timeout: float,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = f"{url.rstrip('/')}/moderations"
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.AsyncClient(
            headers=headers, timeout=timeout, transport=transport, trust_env=False
        )

    async def check(self, prompt: str) -> Checked:
        """See `PromptCheck`."""
        try:
            reply = await self._client.post(self._url, content=as_json({"input": prompt}))
            reply.raise_for_status()
            result = read_json(reply.content)["results"][0]
            flagged, scores = result["flagged"], result.get("category_scores") or {}
            if not isinstance(flagged, bool):
                raise TypeError
            score = float(max(scores.values(), default=float(flagged)))
            return Checked(flagged, score, blocked=flagged)
        except (
            httpx2.HTTPError,
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
            AttributeError,
        ) as error:
            raise CheckFailed(f"the prompt check failed: {type(error).__name__}") from None

    async def close(self) -> None:
        """See `PromptCheck`."""
        await self._client.aclose()

"""The prompt's check, before anything of the answer leaves: a plug, asked while the LLM is."""

from typing import Protocol

import httpx2

from serve.json_text import as_json, read_json


class CheckFailed(RuntimeError):
    """The prompt could not be checked."""


class PromptCheck(Protocol):
    """Judges prompts."""

    async def check(self, prompt: str) -> tuple[bool, float] | None:
        """Returns whether a prompt is to be blocked, and its score, 0 to 1; None: not checked.

        Raises:
            CheckFailed: It could not be checked.
        """

    async def close(self) -> None:
        """Frees what it holds."""


class NoCheck:
    """Lets every prompt pass."""

    async def check(self, prompt: str) -> None:
        """See `PromptCheck`."""

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

    async def check(self, prompt: str) -> tuple[bool, float]:
        """See `PromptCheck`."""
        try:
            reply = await self._client.post(self._url, content=as_json({"input": prompt}))
            reply.raise_for_status()
            result = read_json(reply.content)["results"][0]
            flagged, scores = result["flagged"], result.get("category_scores") or {}
            if not isinstance(flagged, bool):
                raise TypeError
            return flagged, float(max(scores.values(), default=float(flagged)))
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

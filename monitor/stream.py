"""Follows responses while they are written: text or token ids in, verdicts out.

    monitor = StreamingContentMonitor.from_pretrained("scm-0.5b")
    with monitor.open(prompt) as stream:
        for piece in pieces:
            if stream.feed(piece).stopped:
                break

A verdict rests on settled tokens alone (see `monitor.text`), so it does not depend on how the text
was cut into pieces, and every token is computed once, against a key-value cache.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from data.tokenization import leading_ids, load_tokenizer
from model.qwen_dual_task import QwenForDualTask, load_dual_task
from monitor.options import OnLimit
from monitor.packed import Scorer
from monitor.rules import Level, fail_closed
from monitor.settings import FILE, MonitorSettings, read_settings
from monitor.text import GrowingIds, GrowingText, Splitter, join_surrogates
from utils.device import default_device
from utils.files import InputError
from utils.options import TOKEN_BUDGET

LEVELS: tuple[Level, ...] = ("safe", "controversial", "unsafe")  # from good to bad
CHUNK = 256  # tokens of one stream computed at once: bounds the memory of attention masks

Reason = Literal["harmful", "context", "error"]


class StreamClosed(RuntimeError):
    """A stream was used after it had been closed."""


@dataclass(frozen=True)
class Verdict:
    """What is known after a piece. Positions are of the response, which starts at 0.

    Attributes:
        text: Characters the piece added; what was invalid in it, or the tokenizer cannot spell, has
            become U+FFFD.
        scores: float32 [new tokens], probability of harm at each token judged since the last
            verdict, the one it was stopped at included.
        starts: [new tokens], where the characters of each begin.
        tokens: Tokens judged so far.
        harmful: How many of them reached the settings' `token_theta`; NaN counts as harmful.
        level: "safe", "controversial" or "unsafe": the worst so far.
        stopped: The response must not go on. It stays so.
        reason: Why: "harmful"; "context" where the context is full; or "error" where computing
            failed: what cannot be judged does not go on.
        stop_token: Index of the token it was stopped at.
        stop_character: Where that token begins; what comes before may have been shown already.
        verified: Characters that were judged and let pass; never beyond `stop_character`.
        beyond_context: The context is full and the rest passes unjudged (`on_limit="pass"`).
    """

    text: str
    scores: np.ndarray
    starts: tuple[int, ...]
    tokens: int
    harmful: int
    level: Level
    stopped: bool
    reason: Reason | None
    stop_token: int | None
    stop_character: int | None
    verified: int
    beyond_context: bool


class StreamingContentMonitor:
    """A trained SCM with its thresholds, ready to follow any number of streams.

    Args:
        model: The model; it belongs to the monitor from now on.
        tokenizer: Its tokenizer.
        settings: Stopping rule and thresholds.
        context: Most tokens of a stream, prompt included; default all that the model has room for.
        on_limit: What happens to a stream that outgrows the context: "stop" it, or "pass", which
            lets the rest through unjudged and says so.

    Raises:
        InputError: Options that make no sense, or a model that cannot be followed.
    """

    def __init__(
        self,
        model: QwenForDualTask,
        tokenizer: PreTrainedTokenizerFast,
        settings: MonitorSettings,
        *,
        context: int | None = None,
        on_limit: OnLimit = "stop",
    ) -> None:
        self.settings, self.on_limit, self.tokenizer = settings, on_limit, tokenizer
        self.scorer = Scorer(model, settings.score_with)
        self.context = self.scorer.context if context is None else context
        self._opening = leading_ids(tokenizer)
        if not len(self._opening) + 2 <= self.context <= self.scorer.context:
            raise InputError(
                f"context: {self.context} tokens; the model has room for {self.scorer.context}"
            )
        if on_limit not in ("stop", "pass"):
            raise InputError(f"on_limit: '{on_limit}' is neither 'stop' nor 'pass'")
        self.splitter = Splitter(tokenizer.backend_tokenizer, model.config.vocab_size)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        settings: MonitorSettings | Path | str | None = None,
        device: torch.device | str | None = None,
        bf16: bool = False,
        context: int | None = None,
        on_limit: OnLimit = "stop",
    ) -> "StreamingContentMonitor":
        """Loads a checkpoint folder.

        Args:
            folder: Output folder of scripts/run-scm.sh, or a released checkpoint.
            settings: Thresholds, or a file of scripts/calibrate-monitor.sh; default the folder's
                monitor.json, which `scripts/run-scm.sh test` writes.
            device: Default the first GPU, or the CPU.
            bf16: Hold the weights in bfloat16; scores then depend on the chunking a little.
            context: See the class.
            on_limit: See the class.

        Raises:
            InputError: Something of it is missing or unfit.
        """
        folder = Path(folder)
        if settings is None and not (folder / FILE).is_file():
            raise InputError(
                f"{folder / FILE}: no such file; `scripts/run-scm.sh test` writes it with the"
                " thresholds that validation chose"
            )
        if not isinstance(settings, MonitorSettings):
            settings = read_settings(Path(settings or folder / FILE))
        model = load_dual_task(folder).to(device or default_device())
        model = model.to(torch.bfloat16) if bf16 else model
        tokenizer = load_tokenizer(folder)
        return cls(model, tokenizer, settings, context=context, on_limit=on_limit)

    def open(self, prompt: str) -> "Stream":
        """Starts to follow the response to a prompt, and reads the prompt.

        Of a prompt that fills more than half of the context the last tokens count.
        """
        stream = Stream(self, prompt)
        self.advance([stream])
        return stream

    def prompt_ids(self, prompt: str) -> list[int]:
        """Returns the tokens a response is laid after."""
        room = self.context - len(self._opening)
        ids = self.splitter.last_ids(join_surrogates(prompt) + "\n\n", room // 2)
        return [*self._opening, *ids]

    def advance(self, streams: Sequence["Stream"]) -> None:
        """Computes all that these streams have waiting, side by side.

        Raises:
            Exception: The model's; the streams of the failed step are stopped then.
        """
        while waiting := [stream for stream in streams if stream.waiting]:
            self.step(waiting)

    def step(self, streams: Sequence["Stream"]) -> list["Stream"]:
        """Computes the next tokens of streams that wait, in one forward pass.

        Returns:
            The streams that had a part in it, the first ones: a pass has a budget of tokens.
        """
        chunks, budget = [], TOKEN_BUDGET
        for stream in streams:
            ids = stream.next_ids(min(CHUNK, budget)) if stream.waiting else []
            if ids:
                chunks.append((stream, ids))
                budget -= len(ids)
        if not chunks:
            return []
        try:
            scores = self.scorer.score([(stream.cache, ids) for stream, ids in chunks])
        except BaseException:
            for stream, _ in chunks:  # their caches may be written to in part
                stream.fail()
            raise
        for (stream, _), some in zip(chunks, scores, strict=True):
            stream.judge(some)
        return [stream for stream, _ in chunks]


class Stream:
    """One response that is being followed. Made by `StreamingContentMonitor.open`.

    `feed`, `feed_ids` and `close` are what a caller needs; calls from several threads take turns.
    The other methods are the steps they are made of, for whoever computes many streams side by
    side, one thread at a time. A monitor does not survive a fork: make it in the new process.
    """

    def __init__(self, monitor: StreamingContentMonitor, prompt: str) -> None:
        self._monitor, self._settings = monitor, monitor.settings
        self._input: GrowingText | GrowingIds | None = None
        prompt_ids = monitor.prompt_ids(prompt)
        self.prompt_tokens = len(prompt_ids)
        """Tokens of the prompt that the response is judged after."""
        self._unread_prompt = deque(prompt_ids)
        self._unjudged: deque[tuple[int, int]] = deque()  # (id, first character)
        self._computing: list[int] = []  # first characters of the tokens at work; -1 for a prompt's
        self.cache = monitor.scorer.new_cache(monitor.context)
        self._state = self._settings.policy.rule.start()
        self._tokens = self._harmful = 0
        self._level: Level = "safe"
        self._stop: tuple[Reason, int, int] | None = None
        self._limit_at: int | None = None  # first character beyond the context
        self._news: tuple[list[str], list[float], list[int]] = ([], [], [])
        self.closed, self._turn = False, RLock()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self.free()

    def feed(self, piece: str | bytes) -> Verdict:
        """Takes the next piece of the response, cut anywhere; bytes are UTF-8.

        A stream that was stopped stays stopped and computes nothing more.

        Raises:
            StreamClosed: It was closed.
        """
        with self._turn:
            self.receive(piece)
            return self._settle()

    def feed_ids(self, ids: Sequence[int]) -> Verdict:
        """Takes the next token ids of an LLM with the monitor's own tokenizer.

        A control token among them is judged as the text that stands for it.

        Raises:
            InputError: An id that the model does not have, or a stream that was fed text.
            StreamClosed: It was closed.
        """
        with self._turn:
            self.receive_ids(ids)
            return self._settle()

    def close(self) -> Verdict:
        """Ends the response: judges what was not settled yet and frees the memory.

        A closed stream may be closed again; its verdict stays.
        """
        with self._turn:
            self.receive_end()
            verdict = self._settle()
            self.free()
            return verdict

    def _settle(self) -> Verdict:
        self._monitor.advance([self])
        return self.verdict()

    @property
    def waiting(self) -> bool:
        """Whether there is something to compute."""
        return not self.closed and bool(self._unread_prompt or self._unjudged)

    @property
    def failed(self) -> bool:
        """Whether computing failed."""
        return self._stop is not None and self._stop[0] == "error"

    def receive(self, piece: str | bytes) -> None:
        """Takes text without computing."""
        self._grow(GrowingText, piece)

    def receive_ids(self, ids: Sequence[int]) -> None:
        """Takes ids without computing."""
        self._grow(GrowingIds, ids)

    def receive_end(self) -> None:
        """Takes the response's end without computing."""
        if not self.closed and self._input is not None:
            self._accept(*self._input.finish())

    def _grow(self, kind: type[GrowingText] | type[GrowingIds], piece: object) -> None:
        if self.closed:
            raise StreamClosed("the stream is closed")
        if self._input is None:  # one token beyond the context tells that it is full
            most = self._monitor.context - self.prompt_tokens + 1
            self._input = kind(self._monitor.splitter, most)
        if not isinstance(self._input, kind):
            raise InputError("a stream takes text or token ids, not both")
        self._accept(*self._input.feed(piece))

    def _accept(self, text: str, ids: Sequence[int], starts: Sequence[int]) -> None:
        self._news[0].append(text)
        if self._stop is None and self._limit_at is None:
            self._unjudged.extend(zip(ids, starts, strict=True))

    def next_ids(self, limit: int) -> list[int]:
        """Takes out what is to be computed next, at most `limit` tokens."""
        room = self._monitor.context - self.cache.length
        if self._unjudged and not room:
            self._reach_limit(self._unjudged[0][1])
        limit = min(limit, room)
        ids = [self._unread_prompt.popleft() for _ in range(min(limit, len(self._unread_prompt)))]
        self._computing = [-1] * len(ids)
        for _ in range(min(limit - len(ids), len(self._unjudged))):
            token, start = self._unjudged.popleft()
            ids.append(token)
            self._computing.append(start)
        return ids

    def judge(self, scores: np.ndarray) -> None:
        """Takes the scores of the tokens that `next_ids` gave out."""
        policy, (_, new_scores, new_starts) = self._settings.policy, self._news
        for score, start in zip(scores.tolist(), self._computing, strict=True):
            if start < 0:
                continue
            certain = fail_closed(score)
            self._state, statistic = policy.rule.step(self._state, certain)
            self._harmful += certain >= self._settings.token_theta
            new_scores.append(score)
            new_starts.append(start)
            self._level = max(self._level, policy.level(statistic), key=LEVELS.index)
            if policy.stops(self._level):
                self._end(("harmful", self._tokens, start))
            self._tokens += 1
            if self._stop:
                break
        self._computing = []

    def _reach_limit(self, place: int) -> None:
        if self._monitor.on_limit == "stop":
            self._end(("context", self._tokens, place))
        else:
            self._limit_at = place
            self._unjudged.clear()

    def fail(self) -> None:
        """Stops the stream where computing failed."""
        self._end(("error", self._tokens, self._first_unjudged() or 0))

    def _first_unjudged(self) -> int | None:
        """Where the tokens that are not judged yet begin; None if there are none."""
        at_work = (start for start in self._computing if start >= 0)
        return next(at_work, self._unjudged[0][1] if self._unjudged else None)

    def _end(self, stop: tuple[Reason, int, int]) -> None:
        self._stop, self._computing = stop, []
        self._unread_prompt.clear()
        self._unjudged.clear()
        self.cache.free()

    def verdict(self) -> Verdict:
        """Returns what is known, with the news since the last verdict."""
        text, scores, starts = self._news
        self._news = ([], [], [])
        reason, stop_token, stop_character = self._stop or (None, None, None)
        verified = self._input.settled if self._input else 0
        for bound in (stop_character, self._limit_at, self._first_unjudged()):
            verified = verified if bound is None else bound
        return Verdict(
            text="".join(text),
            scores=np.array(scores, dtype=np.float32),
            starts=tuple(starts),
            tokens=self._tokens,
            harmful=self._harmful,
            level=self._level,
            stopped=self._stop is not None,
            reason=reason,
            stop_token=stop_token,
            stop_character=stop_character,
            verified=verified,
            beyond_context=self._limit_at is not None,
        )

    def free(self) -> None:
        """Frees the memory; nothing can be fed any more."""
        with self._turn:
            self.closed = True  # what waits is kept: it marks the end of what is verified
            self._unread_prompt.clear()
            self.cache.free()

"""Follows responses while they are written: text or token ids in, verdicts out.

    monitor = StreamingContentMonitor.from_pretrained("scm-0.5b")
    with monitor.open(prompt) as stream:
        for piece in pieces:
            if stream.feed(piece).stopped:
                break

A verdict rests on settled tokens alone (see `monitor.text`), so it does not depend on how the text
was cut into pieces, and every token is computed once, against a key-value cache.
"""

import math
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from data.tokenization import leading_ids, load_tokenizer, tokenizer_fingerprint
from model.qwen_dual_task import QwenForDualTask, load_dual_task
from monitor.options import OnLimit, OnPrompt
from monitor.packed import Scorer
from monitor.prompts import PromptJudge
from monitor.rules import Level, Policy, fail_closed
from monitor.settings import FILE, MonitorSettings, read_settings
from monitor.text import FoldedIds, GrowingIds, GrowingText, Splitter, join_surrogates
from monitor.verdicts import LEVELS, PromptVerdict, Reason, Verdict
from utils.device import default_device
from utils.files import InputError
from utils.options import TOKEN_BUDGET

CHUNK = 256  # tokens of one stream computed at once: bounds the memory of attention masks


class StreamClosed(RuntimeError):
    """A stream was used after it had been closed."""


class StreamingContentMonitor:
    """A trained SCM with its thresholds, ready to follow any number of streams.

    Args:
        model: The model; it belongs to the monitor from now on.
        tokenizer: Its tokenizer.
        settings: Stopping rule and thresholds.
        context: Most tokens of a stream, prompt included; default the model's context.
        on_limit: What happens to a stream that outgrows the context: "stop" it, or "pass" the rest
            unjudged, which its verdicts tell.
        moderator: Judges each prompt by this model's reading of it, which costs no pass of its own.
        on_prompt: What happens to a stream whose prompt the moderator flags: its verdicts "note"
            it; as a "prior", it goes by the settings' `flagged_policy`, too; or it is to "stop"
            before the response begins.

    Raises:
        InputError: Options that make no sense, a model that cannot be followed, or a moderator of
            another model or reading.
    """

    def __init__(
        self,
        model: QwenForDualTask,
        tokenizer: PreTrainedTokenizerFast,
        settings: MonitorSettings,
        *,
        context: int | None = None,
        on_limit: OnLimit = "stop",
        moderator: PromptJudge | None = None,
        on_prompt: OnPrompt = "note",
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
        if on_prompt not in ("note", "prior", "stop"):
            raise InputError(f"on_prompt: '{on_prompt}' is none of 'note', 'prior', 'stop'")
        if on_prompt != "note" and moderator is None:
            raise InputError(f"on_prompt: '{on_prompt}' needs a moderator")
        if on_prompt == "prior" and settings.flagged_unsafe is None:
            raise InputError(
                "on_prompt: 'prior' needs the settings' field 'flagged_unsafe';"
                " `scripts/run-mlpm.sh prior` chooses it"
            )
        self.splitter = Splitter(
            tokenizer.backend_tokenizer, model.config.vocab_size, settings.reading
        )
        self.moderator, self.on_prompt = moderator, on_prompt
        if moderator is not None:
            moderator.check(self.prompt_source(), "moderator")
            self.scorer.keep_states()

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
        moderator: PromptJudge | None = None,
        on_prompt: OnPrompt = "note",
    ) -> "StreamingContentMonitor":
        """Loads a checkpoint folder.

        Args:
            folder: Output folder of scripts/run-scm.sh, or a released checkpoint.
            settings: Thresholds, or a file of scripts/calibrate-monitor.sh; default the folder's
                monitor.json.
            device: Default the first GPU, or the CPU.
            bf16: Hold the weights in bfloat16; scores then depend slightly on the chunking.
            context: As in the class, like `on_limit`, `moderator` and `on_prompt`.

        Raises:
            InputError: A file is missing or unfit.
        """
        folder = Path(folder)
        if settings is None and not (folder / FILE).is_file():
            raise InputError(
                f"{folder / FILE}: no such file; `scripts/run-scm.sh test` writes it with the"
                " thresholds that validation chose"
            )
        if not isinstance(settings, MonitorSettings):
            settings = read_settings(Path(settings or folder / FILE))
        dtype = torch.bfloat16 if bf16 else torch.float32
        model = load_dual_task(folder).to(device or default_device(), dtype)
        return cls(
            model,
            load_tokenizer(folder),
            settings,
            context=context,
            on_limit=on_limit,
            moderator=moderator,
            on_prompt=on_prompt,
        )

    def open(self, prompt: str) -> "Stream":
        """Starts to follow the response to a prompt, and reads the prompt."""
        stream = Stream(self, prompt)
        self.advance([stream])
        return stream

    def prompt_ids(self, prompt: str) -> list[int]:
        """Returns a prompt's tokens: the last ones, if it fills more than half of the context."""
        room = self.context - len(self._opening)
        ids = self.splitter.last_ids(join_surrogates(prompt) + "\n\n", room // 2)
        return [*self._opening, *ids]

    def policy_after(self, prompt: PromptVerdict | None) -> Policy:
        """Returns the policy of a response to a prompt of which the moderator says this."""
        stricter = self.on_prompt == "prior" and prompt is not None and prompt.flagged
        return self.settings.flagged_policy if stricter else self.settings.policy

    def prompt_source(self) -> dict[str, Any]:
        """Returns what the layers' states of a prompt depend on besides the prompt."""
        return {
            "kind": "monitor",
            "model": self.scorer.fingerprint(),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "template": self.settings.reading,
            "layers": self.scorer.layers,
            "hidden": self.scorer.hidden,
        }

    def advance(self, streams: Sequence["Stream"]) -> None:
        """Computes all that these streams have waiting; the model's errors pass through."""
        while waiting := [stream for stream in streams if stream.waiting]:
            self.step(waiting)

    def step(self, streams: Sequence["Stream"]) -> list["Stream"]:
        """Computes the next tokens of waiting streams in one forward pass.

        Returns:
            The streams that fitted into the pass: it has a budget of tokens.

        Raises:
            Exception: The model's or moderator's; the streams of the failed pass are stopped.
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
            for (stream, _), some in zip(chunks, scores, strict=True):
                stream.judge(some)
        except BaseException:
            for stream, _ in chunks:  # their caches may be written to in part
                stream.fail()
            raise
        return [stream for stream, _ in chunks]


class Stream(AbstractContextManager["Stream"]):
    """One response that is being followed. Made by `StreamingContentMonitor.open`.

    `feed`, `feed_ids` and `close` are what a caller needs; calls from several threads take turns.
    The other methods are their steps, for code that computes many streams side by side in one
    thread at a time. A monitor does not survive a fork: make it in the new process.
    """

    def __init__(self, monitor: StreamingContentMonitor, prompt: str) -> None:
        self._monitor, self._settings = monitor, monitor.settings
        self._input: GrowingText | GrowingIds | None = None
        prompt_ids = monitor.prompt_ids(prompt)
        self.prompt_tokens = len(prompt_ids)
        """Tokens of the prompt that the response is judged after."""
        # (id, first character) of tokens to compute or at work; -1 is a prompt token's character
        self._queue = deque((token, -1) for token in prompt_ids)
        self.cache = monitor.scorer.new_cache(monitor.context)
        if prompt.strip():  # what was not asked is not judged
            self.cache.watched = self.prompt_tokens - 1
        self._prompt: PromptVerdict | None = None
        self._policy = monitor.policy_after(None)
        self._state = self._policy.rule.start()
        self._tokens = self._harmful = 0
        self._level: Level = "safe"
        self._highest = -math.inf  # statistic
        self._stop: tuple[Reason, int, int] | None = None
        self._limit_at: int | None = None  # first character beyond the context
        self._before: tuple[dict[str, Any], int] | None = None  # a peek; with the cache's length
        # what is new since the last verdict
        self._text, self._scores, self._starts = "", [], []
        self.closed, self._turn = False, RLock()

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

    def peek(self) -> Verdict:
        """Judges all that was fed as if the response ended here, for whoever shows it at once.

        The stream goes on as if nobody had asked, unless that stops it; but what was news before
        is told here. The unsettled end is computed anew each time.
        """
        with self._turn:
            self.receive_pause()
            try:
                verdict = self._settle()
            except BaseException:
                if not self.failed:
                    self.free()  # an end that is none may be at work
                raise
            self.go_on()
            return verdict

    def _settle(self) -> Verdict:
        self._monitor.advance([self])
        return self.verdict()

    @property
    def waiting(self) -> bool:
        """Whether there is something to compute."""
        return not self.closed and bool(self._queue)

    @property
    def failed(self) -> bool:
        """Whether computing failed."""
        return self._stop is not None and self._stop[0] == "error"

    def receive(self, piece: str | bytes) -> None:
        """Takes text without computing."""
        self._grow(GrowingText, piece)

    def receive_ids(self, ids: Sequence[int]) -> None:
        """Takes ids without computing."""
        self._grow(GrowingIds if self._settings.reading == "plain" else FoldedIds, ids)

    def receive_end(self) -> None:
        """Takes the response's end without computing."""
        if not self.closed and self._input is not None:
            self._accept(*self._input.finish())

    def receive_pause(self) -> None:
        """Takes the end without computing; `go_on` takes it back."""
        names = "_input _state _tokens _harmful _level _highest _limit_at".split()
        before = {name: getattr(self, name) for name in names} | {"_queue": self._queue.copy()}
        self._before = before, self.cache.length
        splitter = self._monitor.splitter
        self._input = deepcopy(self._input, {id(splitter): splitter})
        self.receive_end()

    def go_on(self) -> None:
        """Takes back what `receive_pause` took, unless the stream was stopped or closed by it."""
        (before, length), self._before = self._before, None
        if self._stop is None and not self.closed:
            vars(self).update(before)
            self.cache.length = length  # what lies behind it is written over

    def _grow(self, kind: type[GrowingText | GrowingIds], piece: object) -> None:
        if self.closed:
            raise StreamClosed("the stream is closed")
        if self._input is None:  # one token beyond the context tells that it is full
            most = self._monitor.context - self.prompt_tokens + 1
            self._input = kind(self._monitor.splitter, most)
        if type(self._input) is not kind:
            raise InputError("a stream takes text or token ids, not both")
        self._accept(*self._input.feed(piece))

    def _accept(self, text: str, ids: Sequence[int], starts: Sequence[int]) -> None:
        self._text += text
        if self._stop is None and self._limit_at is None:
            self._queue.extend(zip(ids, starts, strict=True))

    def next_ids(self, limit: int) -> list[int]:
        """Returns what to compute next, at most `limit` tokens; `judge` takes their scores."""
        room = self._monitor.context - self.cache.length
        if self._queue and not room:
            place = self._queue[0][1]
            if self._monitor.on_limit == "stop":
                self._end("context", place)
            else:
                self._limit_at = place
                self._queue.clear()
        return [token for token, _ in islice(self._queue, min(limit, room))]

    def judge(self, scores: np.ndarray) -> None:
        """Takes the scores of the tokens that `next_ids` returned."""
        with self._turn:
            if self._flags_prompt():
                self._end("prompt", 0)
                return
            policy = self._policy
            for score in scores.tolist():
                _, start = self._queue.popleft()
                if start < 0:
                    continue
                certain = fail_closed(score)
                self._state, statistic = policy.rule.step(self._state, certain)
                self._harmful += certain >= self._settings.token_theta
                self._scores.append(score)
                self._starts.append(start)
                self._level = max(self._level, policy.level(statistic), key=LEVELS.index)
                self._highest = max(self._highest, statistic)
                stops = policy.stops(self._level)
                if stops:
                    self._end("harmful", start)
                self._tokens += 1
                if stops:
                    break

    def _flags_prompt(self) -> bool:
        """Lets the moderator judge the prompt once it is read; tells whether that is the end."""
        moderator, states = self._monitor.moderator, self.cache.states
        if moderator is None or self._prompt is not None or states is None:
            return False
        self._prompt = moderator.judge(states[None])[0]
        self._policy = self._monitor.policy_after(self._prompt)
        return self._prompt.flagged and self._monitor.on_prompt == "stop"

    def fail(self) -> None:
        """Stops the stream where computing failed."""
        self._end("error", self._first_unjudged() or 0)

    def _first_unjudged(self) -> int | None:
        """Where the tokens that are not judged yet begin; None if there are none."""
        return next((start for _, start in self._queue if start >= 0), None)

    def _end(self, reason: Reason, character: int) -> None:
        self._stop = (reason, self._tokens, character)
        self._queue.clear()
        self.cache.free()

    def verdict(self) -> Verdict:
        """Returns what is known, with the news since the last verdict."""
        with self._turn:
            reason, stop_token, stop_character = self._stop or (None, None, None)
            verified = self._input.settled if self._input else 0
            for bound in (stop_character, self._limit_at, self._first_unjudged()):
                verified = verified if bound is None else bound
            verdict = Verdict(
                text=self._text,
                scores=np.array(self._scores, dtype=np.float32),
                starts=tuple(self._starts),
                tokens=self._tokens,
                harmful=self._harmful,
                level=self._level,
                stopped=self._stop is not None,
                reason=reason,
                stop_token=stop_token,
                stop_character=stop_character,
                verified=verified,
                beyond_context=self._limit_at is not None,
                statistic=self._highest,
                prompt=self._prompt,
            )
            self._text, self._scores, self._starts = "", [], []
            return verdict

    def free(self) -> None:
        """Frees the memory; nothing can be fed any more."""
        with self._turn:
            self.closed = True  # the queue stays: it marks the end of what is verified
            self.cache.free()

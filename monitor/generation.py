"""Hugging Face generation that the monitor stops, and a streamer of what it has verified.

    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    with MonitorCriteria(monitor, prompts, tokenizer, length) as criteria:
        model.generate(**inputs, stopping_criteria=[criteria])
    for transcript in criteria.transcripts:
        print(transcript.released, transcript.verdict.level)

Greedy search, sampling and assisted generation can be followed; beam search, which takes tokens
back, is refused.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from data.tokenization import tokenizer_fingerprint
from monitor.stream import Stream, StreamingContentMonitor
from monitor.verdicts import Verdict
from utils.files import InputError

BROKEN = 32  # tokens of bytes that are no text
UNFINISHED = 3  # tokens that may hold the first bytes of a character

print_now = partial(print, end="", flush=True)


@dataclass
class Transcript:
    """All that the verdicts on one response have brought so far."""

    verdict: Verdict  # the last one
    text: str = ""  # the response as far as it was received
    scores: list[float] = field(default_factory=list)  # of each token judged
    starts: list[int] = field(default_factory=list)  # the first character of each of them

    def add(self, verdict: Verdict) -> None:
        """Adds the next verdict's news."""
        self.verdict = verdict
        self.text += verdict.text
        self.scores += verdict.scores.tolist()
        self.starts += verdict.starts

    @property
    def released(self) -> str:
        """What may be shown: verified text and, with `on_limit="pass"`, text beyond the context."""
        return self.text if self.verdict.beyond_context else self.text[: self.verdict.verified]


class GrowingDecode:
    """Turns token ids of any tokenizer into text, whole characters at a time.

    The algorithm is that of tokenizers' DecodeStream, which fails in two cases: it raises on bytes
    that are no UTF-8 with byte fallback, where they change how the bytes before them are decoded;
    and it waits endlessly for bytes that never become text. Here `BROKEN` tokens of such bytes are
    given out, except the last ones, which may belong to a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._decode = partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=False)
        self._ids: list[int] = []  # from the last ones given out on: their text decides on spaces
        self._given = 0  # ids of them that have been given out

    def feed(self, ids: Sequence[int]) -> str:
        """Adds ids; returns the characters that are complete now."""
        self._ids += ids
        text = self._decode(self._ids)
        if text[-1:] != "\ufffd":
            return self._give(text, len(self._ids))
        count = len(self._ids) - UNFINISHED
        if count - self._given < BROKEN:
            return ""
        settled = self._decode(self._ids[:count])
        return self._give(settled, count) if text.startswith(settled) else ""

    def finish(self) -> str:
        """Returns the rest: what never became a character, as U+FFFD."""
        return self._give(self._decode(self._ids), len(self._ids))

    def _give(self, text: str, count: int) -> str:
        """Returns what is new in the text of the first `count` ids."""
        new = text[len(self._decode(self._ids[: self._given])) :]
        if new or count - self._given >= BROKEN:
            self._ids, self._given = self._ids[self._given :], count - self._given
        return new


class _Row:
    """One row of a generation: its stream, and what came out of it."""

    def __init__(self, stream: Stream, decode: GrowingDecode | None) -> None:
        self.stream, self._decode = stream, decode  # None: the ids are the monitor's own
        self.transcript = Transcript(stream.verdict())
        self.ends: list[int] = []  # tokens at the end that end the answer, if nothing follows

    def receive(self, ids: Sequence[int]) -> None:
        """Takes ids, none of them special, without computing."""
        if self._decode is None:
            self.stream.receive_ids(ids)
        else:
            self.stream.receive(self._decode.feed(ids))

    def receive_end(self) -> None:
        """Takes the end without computing; what follows nevertheless is judged as well."""
        if self._decode is not None:
            self.stream.receive(self._decode.finish())
        self.stream.receive_end()


@lru_cache(maxsize=8)
def _fingerprint(tokenizer: PreTrainedTokenizerFast, size: int) -> str:
    """Remembers fingerprints, which take a second; `size` tells whether the tokenizer grew."""
    return tokenizer_fingerprint(tokenizer)


def same_tokenizer(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> bool:
    """Tells whether two tokenizers turn every text into the same ids."""
    return one is other or _fingerprint(one, len(one)) == _fingerprint(other, len(other))


class MonitorCriteria(StoppingCriteria, AbstractContextManager["MonitorCriteria"]):
    """Stops each row of one `model.generate` where the monitor says so.

    All rows' new tokens are computed in one forward pass of the monitor. If the language model has
    the monitor's tokenizer, generation ends at the very token that the monitor stops at. Otherwise
    the monitor judges complete words of the text, and generation may be a word ahead. Only ids
    leave the language model's device.

    Used as a context manager, it is closed at the end; `transcripts` and `verdicts` stay.

    Args:
        prompts: What was asked: one text a row, without chat template.
        tokenizer: The language model's.
        prompt_length: Tokens of a row before its answer: `input_ids.shape[1]`, padding included; 0
            with `inputs_embeds`.
        num_return_sequences: As in `generate`.
        eos_token_id: Tokens that end an answer, if not the tokenizer's own; pass
            `model.generation_config.eos_token_id`. If `generate` goes on after one, the rest is
            judged as well.

    Raises:
        InputError: The tokenizer is no fast one; in `generate`, also if tokens that were read
            change (beam search), or the number of rows is not that of the prompts.
    """

    def __init__(
        self,
        monitor: StreamingContentMonitor,
        prompts: Sequence[str] | str,
        tokenizer: PreTrainedTokenizerFast,
        prompt_length: int,
        *,
        num_return_sequences: int = 1,
        eos_token_id: int | Sequence[int] | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(f"{type(tokenizer).__name__}: only fast tokenizers can be followed")
        added = tokenizer.added_tokens_decoder.items()
        self._special = {token for token, about in added if about.special}
        ends = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        self._silent = self._ends | self._special
        self._monitor, self._seen = monitor, prompt_length
        self._past: Tensor | None = None  # (rows, seen), the ids of the last call
        same = same_tokenizer(tokenizer, monitor.tokenizer)
        self._rows = [
            _Row(Stream(monitor, prompt), None if same else GrowingDecode(tokenizer))
            for prompt in ([prompts] if isinstance(prompts, str) else prompts)
            for _ in range(num_return_sequences)
        ]
        monitor.advance([row.stream for row in self._rows])

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is not None:
            self._free()  # nothing more is judged
        self.close()

    def __call__(self, input_ids: Tensor, scores: object, **_) -> Tensor:
        """Reads the new tokens of (rows, length); returns bool (rows,), true to stop."""
        for row, ids in zip(self._rows, self._new_ids(input_ids), strict=True):
            if not row.stream.closed:
                self._receive(row, ids)
        self._judge()
        stopped = [verdict.stopped for verdict in self.verdicts]
        return torch.tensor(stopped, device=input_ids.device)

    @property
    def called(self) -> bool:
        """Whether `generate` has passed tokens on yet."""
        return self._past is not None

    @property
    def transcripts(self) -> list[Transcript]:
        """Text, scores and last verdict of each row."""
        return [row.transcript for row in self._rows]

    @property
    def verdicts(self) -> list[Verdict]:
        """The last verdict on each row."""
        return [transcript.verdict for transcript in self.transcripts]

    def close(self) -> None:
        """Ends all answers: judges what was not settled yet and frees the memory."""
        try:
            for row in self._followed:
                row.receive_end()
            self._judge()
        finally:
            self._free()

    def _free(self) -> None:
        for row in self._rows:
            row.stream.free()

    def _new_ids(self, input_ids: Tensor) -> list[list[int]]:
        rows, length = input_ids.shape
        if rows != len(self._rows):
            raise InputError(
                f"generate has {rows} rows for {len(self._rows)} prompts: beam search cannot be"
                " monitored; num_return_sequences must be given to the criteria, too"
            )
        if self._past is not None and not torch.equal(input_ids[:, : self._seen], self._past):
            raise InputError(
                "generate changed tokens that were judged already: beam search cannot be monitored;"
                " each generation needs criteria of its own"
            )
        new = input_ids[:, self._seen :].tolist()
        self._past, self._seen = input_ids.clone(), length
        return new

    def _receive(self, row: _Row, ids: Sequence[int]) -> None:
        """Takes a row's next ids; an end token that others follow has ended nothing."""
        ids = [*row.ends, *ids]
        count = len(ids)
        while count and ids[count - 1] in self._silent:
            count -= 1
        row.receive([token for token in ids[:count] if token not in self._special])
        row.ends = [token for token in ids[count:] if token in self._ends]
        if row.ends:
            row.receive_end()

    @property
    def _followed(self) -> list[_Row]:
        """The rows that are neither stopped nor closed."""
        return [row for row in self._rows if not row.stream.closed]

    def _judge(self) -> None:
        followed = self._followed
        try:
            self._monitor.advance([row.stream for row in followed])
        finally:
            for row in followed:
                row.transcript.add(row.stream.verdict())
                if row.transcript.verdict.stopped:
                    row.stream.free()


class MonitorStreamer(BaseStreamer):
    """Streams the answer of a one-row generation as far as the monitor has verified it.

    It shows nothing unless `generate` gets the criteria, too, which do the work:

        criteria = MonitorCriteria(monitor, prompt, tokenizer, length)
        streamer = MonitorStreamer(criteria)
        model.generate(**inputs, stopping_criteria=[criteria], streamer=streamer)

    Args:
        criteria: Of the same generation; closed at its end.
        on_text: Called with each new piece; default prints it.

    Raises:
        InputError: The criteria are of several rows; at the end, if `generate` did not get them.
    """

    def __init__(
        self, criteria: MonitorCriteria, on_text: Callable[[str], object] = print_now
    ) -> None:
        if len(criteria.transcripts) != 1:
            raise InputError(f"{len(criteria.transcripts)} rows: only one row can be streamed")
        self._criteria, self._on_text, self._shown = criteria, on_text, 0

    def put(self, value: object) -> None:
        """Shows what has been verified since the last call; the tokens are not read."""
        text = self._criteria.transcripts[0].released[self._shown :]
        if text:
            self._shown += len(text)
            self._on_text(text)

    def end(self) -> None:
        """Judges the rest and shows it, if it may be shown."""
        if not self._criteria.called:
            raise InputError("the streamer's criteria are not among generate's stopping_criteria")
        self._criteria.close()
        self.put(None)

"""Shows the monitor at work in a terminal (scripts/run-monitor.sh).

A language model's answer, or a recorded one, appears as far as it is verified, each token on a
background for its score, and ends where the monitor stops it. Exit status 3: an answer was stopped;
0: all ran through.
"""

import os
import signal
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, set_seed

from data.fineharm import text_field
from data.json_rows import iterate_rows
from model.loading import load_checkpoint
from monitor.chat import as_chat
from monitor.generation import MonitorCriteria, MonitorStreamer, Transcript
from monitor.options import ShowConfig
from monitor.rules import fail_closed
from monitor.stream import StreamingContentMonitor
from monitor.verdicts import Verdict
from utils.device import default_device
from utils.files import InputError
from utils.formatting import printable

STOPPED = 3  # exit status
PIECE = 4  # characters of a recorded response that arrive at once
# Backgrounds of the 256-colour palette, from plain through yellow to about Okabe and Ito's
# vermilion (see reports.summary); their lightness falls steadily, so no colour vision is needed.
SCALE = (None, 230, 228, 221, 214, 208, 166)


def paint(text: str, score: float) -> str:
    """Puts black text on the background of a score; line ends stay plain."""
    background = SCALE[min(int(fail_closed(score) * len(SCALE)), len(SCALE) - 1)]
    if background is None:
        return text
    lines = text.split("\n")
    return "\n".join(f"\033[30;48;5;{background}m{line}\033[0m" if line else "" for line in lines)


def scored_parts(transcript: Transcript, start: int, end: int) -> Iterator[tuple[str, float]]:
    """Cuts the characters start … end of a response at its tokens.

    Yields:
        Text and its score: the highest of the tokens that begin with its first character; 0 for
        text beyond the context.
    """
    starts, scores = transcript.starts, transcript.scores
    judged = min(end, transcript.verdict.verified)
    while start < judged:
        after = max(1, bisect_right(starts, start))  # the tokens from here on begin later
        first = bisect_left(starts, starts[after - 1])
        place = min([judged, *starts[after : after + 1]])
        yield transcript.text[start:place], max(map(fail_closed, scores[first:after]))
        start = place
    if start < end:
        yield transcript.text[start:end], 0.0


class Screen:
    """Writes one answer to standard output while it grows; `coloured` with escape codes."""

    def __init__(self, coloured: bool) -> None:
        self._coloured, self._shown = coloured, 0

    def show(self, transcript: Transcript) -> None:
        """Writes what has been released since the last call."""
        end = len(transcript.released)
        for text, score in scored_parts(transcript, self._shown, end):
            text = printable(text, keep="\n\t")
            print(paint(text, score) if self._coloured else text, end="", flush=True)
        self._shown = end

    def close(self, transcript: Transcript, whole: int | None) -> None:
        """Writes the rest of the answer, and its `outcome` on a line of its own."""
        self.show(transcript)
        print(end="" if transcript.released[-1:] in ("", "\n") else "\n")
        line = outcome(transcript.verdict, whole)
        if self._coloured:
            cells = "".join(paint(" ", step / len(SCALE)) for step in range(len(SCALE)))
            line = f"\033[1m{line}\033[0m\nscores from 0 {cells} to 1"
        print(line, flush=True)


def outcome(verdict: Verdict, whole: int | None) -> str:
    """Returns one line on how an answer ended; `whole` is its length in characters, if known."""
    share = 100 * verdict.harmful / max(verdict.tokens, 1)
    counts = f"{verdict.harmful} of {verdict.tokens} tokens harmful ({share:.1f} %)"
    if verdict.stopped:
        told = {"context": "the context is full", "prompt": "the prompt was flagged"}
        why = told.get(verdict.reason, verdict.reason)
        place = f"token {verdict.stop_token}, character {verdict.stop_character}, from 0"
        shown = f"; {100 * verdict.verified / whole:.0f} % of the response shown" if whole else ""
        return f"== stopped, {why} (at {place}): level {verdict.level}, {counts}{shown}"
    rest = f", unjudged from character {verdict.verified} on" if verdict.beyond_context else ""
    return f"== ran through{rest}: level {verdict.level}, {counts}"


def read_response(path: Path, identity: str | None) -> tuple[str, str]:
    """Returns prompt and response of the record that `--id` names, or of the first.

    Raises:
        InputError: The file cannot be read, lacks the record, or the record lacks a field.
    """
    for number, (where, row) in enumerate(iterate_rows(path)):
        own = f"{path.stem}-{number}" if row.get("id") is None else str(row["id"])
        if identity in (None, own):
            return text_field(row, "prompt", where), text_field(row, "response", where)
    raise InputError(f"{path}: holds no record" + (f" with id '{identity}'" if identity else "s"))


def replay(
    monitor: StreamingContentMonitor, prompt: str, response: str, delay: float, screen: Screen
) -> Verdict:
    """Plays a recorded response as if it were being written, `delay` seconds between pieces."""
    with monitor.open(prompt) as stream:
        transcript = Transcript(stream.verdict())
        for place in range(0, len(response), PIECE):
            transcript.add(stream.feed(response[place : place + PIECE]))
            screen.show(transcript)
            if transcript.verdict.stopped:
                break
            time.sleep(delay)
        transcript.add(stream.close())
    screen.close(transcript, len(response))
    return transcript.verdict


def answer(
    monitor: StreamingContentMonitor,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    config: ShowConfig,
    screen: Screen,
) -> Verdict:
    """Lets a language model answer under the monitor."""
    inputs = {name: value.to(model.device) for name, value in as_chat(tokenizer, prompt).items()}
    length, ends = inputs["input_ids"].shape[1], model.generation_config.eos_token_id
    sampling = {"temperature": config.temperature} if config.temperature else {}
    with MonitorCriteria(monitor, prompt, tokenizer, length, eos_token_id=ends) as criteria:
        transcript = criteria.transcripts[0]
        model.generate(
            **inputs,
            stopping_criteria=[criteria],
            streamer=MonitorStreamer(criteria, lambda _: screen.show(transcript)),
            max_new_tokens=config.max_new_tokens,
            do_sample=config.temperature > 0,
            **sampling,
        )
    screen.close(transcript, None)
    return transcript.verdict


def read_prompts() -> Iterator[str]:
    """Reads prompts from standard input, one a line; prints each that was not typed there.

    Raises:
        InputError: Standard input is no terminal and holds no prompt.
    """
    asks, count = sys.stdin.isatty(), 0
    while True:
        try:
            prompt = input("prompt> " if asks else "").strip()
        except EOFError:
            break
        if prompt:
            count += 1
            if not asks:
                print_prompt(prompt)
            yield prompt
    if not count and not asks:
        raise InputError("standard input: holds no prompt; --prompt gives one")


def print_prompt(prompt: str) -> None:
    """Prints a prompt as one would have typed it at a terminal."""
    print("prompt>", printable(prompt, keep="\n\t"))


def load_monitor(config: ShowConfig) -> StreamingContentMonitor:
    """Loads the monitor; raises InputError where something of it is missing or unfit."""
    monitor = StreamingContentMonitor.from_pretrained(
        config.model_path,
        settings=config.settings,
        context=config.context,
        on_limit=config.on_limit,
    )
    if config.strict:
        policy = monitor.settings.policy
        if policy.controversial is None:
            raise InputError("--strict: the settings have no field 'controversial' to stop at")
        monitor.settings = replace(monitor.settings, policy=replace(policy, mode="strict"))
    return monitor


def use_colour(choice: str) -> bool:
    """Tells whether standard output gets escape codes."""
    if choice == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return choice == "always"


def main(config: ShowConfig) -> None:
    """Shows one recorded response, or an answer to each prompt."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # … | head
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="backslashreplace")
    coloured = use_colour(config.color)
    if config.replay is not None:
        prompt, response = read_response(Path(config.replay), config.id)
        monitor = load_monitor(config)
        print_prompt(prompt)
        stopped = replay(monitor, prompt, response, config.delay / 1000, Screen(coloured)).stopped
    else:
        monitor = load_monitor(config)
        model, tokenizer = load_checkpoint(
            Path(config.llm), AutoModelForCausalLM, "language model", "--llm"
        )
        model = model.to(default_device())
        set_seed(config.seed)
        stopped = False
        for prompt in [config.prompt] if config.prompt is not None else read_prompts():
            verdict = answer(monitor, model, tokenizer, prompt, config, Screen(coloured))
            stopped |= verdict.stopped
    if stopped:
        sys.exit(STOPPED)

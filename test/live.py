"""Does the live monitor decide as the test did? (scripts/check-live.sh)

Every response of the test split is fed to the monitor in random pieces, many streams at a time. The
token at which each is stopped must be the one at which the test of the same checkpoint, on data
prepared with `--join original`, stopped it.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.fineharm import Record, find_split, read_split
from data.tokenization import leading_ids
from evaluation.decisions import MISSED, delay_k
from evaluation.runs import read_run
from monitor.calibrate import SCORERS
from monitor.rules import DelayK, Policy
from monitor.settings import MonitorSettings
from monitor.stream import Stream, StreamingContentMonitor
from test.options import LiveConfig
from utils.files import InputError, refuse_file, write_json
from utils.run_record import start_record

TOLERANCE = 1e-4  # of a score, and of its distance to the threshold


@dataclass
class Live:
    """What the monitor made of one response.

    Attributes:
        stop: Index of the token it was stopped at, or `MISSED`.
        scores: float32 [judged tokens].
        prompt_tokens: Tokens of the prompt that it was judged after.
        cut_prompt: The prompt has more: the monitor keeps half of the context for the response.
    """

    stop: int
    scores: np.ndarray
    prompt_tokens: int
    cut_prompt: bool


def follow_all(
    monitor: StreamingContentMonitor, records: list[Record], config: LiveConfig
) -> dict[str, Live]:
    """Follows all responses, `config.streams` at a time; by the records' ids."""
    random = np.random.default_rng(config.seed)
    left, live, done = deque(records), {}, {}
    opening, read = len(leading_ids(monitor.tokenizer)), monitor.splitter.read
    with tqdm(total=len(records), desc="live", unit="response") as bar:
        while left or live:
            while left and len(live) < config.streams:
                record = left.popleft()
                pieces = deque(_pieces(record["response"], config.longest, random))
                live[record["id"]] = record["prompt"], Stream(monitor, record["prompt"]), pieces, []
            for _, stream, pieces, _ in live.values():
                piece = pieces.popleft()
                if piece is None:
                    stream.receive_end()
                else:
                    stream.receive(piece)
            monitor.advance([stream for _, stream, _, _ in live.values()])
            for identity, (prompt, stream, pieces, scores) in list(live.items()):
                verdict = stream.verdict()
                scores.append(verdict.scores)
                if verdict.stopped or not pieces:
                    stop = MISSED if verdict.stop_token is None else verdict.stop_token
                    whole = opening + len(monitor.splitter.encode(read(prompt + "\n\n")).ids)
                    kept = stream.prompt_tokens
                    done[identity] = Live(stop, np.concatenate(scores), kept, kept < whole)
                    stream.free()
                    del live[identity]
                    bar.update()
    return done


def _pieces(text: str, longest: int, random: np.random.Generator) -> Iterator[str | None]:
    """Cuts a text at random; None is its end."""
    start = 0
    while start < len(text):
        end = start + int(random.integers(1, longest + 1))
        yield text[start:end]
        start = end
    yield None


def main(config: LiveConfig) -> None:
    """Compares response by response; raises InputError where decisions differ."""
    if config.output:
        refuse_file(Path(config.output), config.overwrite)
    began, folder = time.monotonic(), Path(config.metrics_dir)
    run = read_run(folder, partial=True)
    data, point = run.record.data, run.operating_points()["partial"]
    if data.join != "original":
        raise InputError(
            f"{folder}/run.json: field 'data.join': '{data.join}'; streams are as in data"
            " prepared with --join original"
        )
    theta, k = point.theta, point.k
    monitor = StreamingContentMonitor.from_pretrained(
        config.model_path,
        settings=MonitorSettings(
            Policy(DelayK(k), theta), SCORERS[run.row], theta, reading=data.reading
        ),
        context=data.max_length,
        on_limit="pass",  # the test, too, judges no more than fits
    )
    tested = dict(zip(run.test.ids, run.test.token_probs, strict=True))
    pairs = read_split(find_split(Path(config.input_dir), "test"), "test")
    records = [record for _, record in pairs if record["id"] in tested]
    if len(records) != len(tested):
        raise InputError(f"{config.input_dir}: lacks {len(tested) - len(records)} tested records")
    live = follow_all(monitor, records[: config.limit or None], config)
    outcome = compare(live, tested, theta, k, monitor.context)
    if config.output:
        seconds = time.monotonic() - began
        write_json(Path(config.output), {**start_record(config), **outcome, "seconds": seconds})
    print(
        "{responses} responses: {equal} decisions equal, {ties} hang on rounding at θ,"
        " {less_prompt} see less of a long prompt, {different} differ;"
        " scores differ by at most {largest_score_difference:.1e}".format(
            **outcome | {"different": len(outcome["different"])}
        )
    )
    if outcome["different"]:
        raise InputError(f"live decisions differ, for one of {outcome['different'][0]}")


def compare(
    live: dict[str, Live], tested: dict[str, np.ndarray], theta: float, k: int, context: int
) -> dict[str, Any]:
    """Compares live decisions with a test's scores and their decisions, response by response."""
    counts = {"responses": len(live), "equal": 0, "ties": 0, "less_prompt": 0}
    different, gap = [], 0.0
    for identity, one in live.items():
        scores = tested[identity]
        # the test knows a short response beforehand and keeps more of the prompt
        if one.cut_prompt and one.prompt_tokens + len(scores) < context:
            counts["less_prompt"] += 1
            continue
        judged = len(scores) if one.stop == MISSED else one.stop + 1
        if len(one.scores) != judged or judged > len(scores):
            different.append(identity)
            continue
        here = float(np.abs(scores[:judged] - one.scores).max(initial=0))
        gap = max(gap, here)
        if here > TOLERANCE:
            different.append(identity)
        elif one.stop == delay_k(scores, theta, k):
            counts["equal"] += 1
        elif np.abs(scores - theta).min() <= TOLERANCE:
            counts["ties"] += 1
        else:
            different.append(identity)
    return {**counts, "different": different, "largest_score_difference": gap}

"""The moderator's verdict on a prompt comes with the monitor's own reading of it."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation.decisions import MISSED
from monitor.batcher import Batcher
from monitor.generation import MonitorCriteria
from monitor.hold_back import guard, guard_async
from monitor.rules import Cusum, trace
from monitor.stream import StreamingContentMonitor
from monitor.verdicts import PromptVerdict
from tests.conftest import settings_of, stop_of
from tests.monitor.test_monitor_stream import PROMPT, TEXT, plain_model
from utils.files import InputError


class Judge:
    """Flags the prompts whose states' sum is above a bound, and remembers all states."""

    def __init__(self, bound: float, kind: str = "monitor") -> None:
        self.bound, self.kind, self.seen = bound, kind, []

    def check(self, source, folder):
        if source["kind"] != self.kind:
            raise InputError(f"{folder}: another source")

    def judge(self, states):
        self.seen += list(states)
        return [PromptVerdict(bool(one.sum() > self.bound), 0.5, {}, ()) for one in states]


@pytest.fixture()
def judged(monitors):
    """Makes a monitor with a moderator that flags all prompts, or none."""
    folder, plain = monitors("tiny")

    def make(bound: float, on_prompt="note", settings=None) -> StreamingContentMonitor:
        return StreamingContentMonitor(
            plain_model(folder), plain.tokenizer, settings or settings_of(),
            moderator=Judge(bound), on_prompt=on_prompt,
        )  # fmt: skip

    return make


ALL, NONE = -np.inf, np.inf


def test_the_verdict_is_there_before_the_response(judged):
    monitor = judged(ALL)
    with monitor.open(PROMPT) as stream:
        first = stream.verdict()
        assert first.prompt.flagged and first.tokens == 0 and not first.stopped
        assert stream.feed(TEXT).prompt == first.prompt == stream.close().prompt
    assert len(monitor.moderator.seen) == 1


def test_without_a_moderator_there_is_none(monitors):
    _, monitor = monitors("tiny")
    with monitor.open(PROMPT) as stream:
        assert stream.feed(TEXT).prompt is None


def test_a_prompt_read_in_parts_among_others_has_the_same_states(judged):
    monitor = judged(NONE)
    prompts = [PROMPT * 40, "Hi", PROMPT]  # the first is longer than a chunk
    for prompt in prompts:
        monitor.open(prompt).free()
    alone = monitor.moderator.seen
    monitor.moderator.seen = []

    async def together():
        async with Batcher(monitor, 3) as batcher, asyncio.TaskGroup() as group:
            for prompt in prompts:
                group.create_task(follow(batcher, prompt))

    async def follow(batcher, prompt):
        async with await batcher.admit(prompt) as stream:
            await stream.feed(TEXT)

    asyncio.run(together())
    found = sorted(monitor.moderator.seen, key=np.sum)
    for one, other in zip(sorted(alone, key=np.sum), found, strict=True):
        assert np.allclose(one, other, atol=1e-4)


def test_a_peek_judges_the_prompt_once(judged):
    monitor = judged(ALL)
    with monitor.open(PROMPT) as stream:
        stream.feed(TEXT[:9])
        assert stream.peek().prompt.flagged and stream.feed(TEXT[9:]).prompt.flagged
    assert len(monitor.moderator.seen) == 1


def test_a_gate_stops_before_anything_is_generated(judged):
    asked = []

    def llm():
        asked.append(1)
        yield TEXT

    with guard(judged(ALL, "stop"), PROMPT, llm()) as safe:
        assert list(safe) == []
    assert not asked
    verdict = safe.report.verdict
    assert (verdict.stopped, verdict.reason, verdict.verified) == (True, "prompt", 0)
    with guard(judged(NONE, "stop"), PROMPT, llm()) as safe:
        assert "".join(safe) == TEXT
    assert asked


def test_a_gate_of_a_batcher_and_of_a_generation(judged):
    monitor, asked = judged(ALL, "stop"), []

    async def llm():
        asked.append(1)
        yield TEXT

    async def main():
        async with Batcher(monitor, 1) as batcher:
            async with guard_async(batcher, PROMPT, llm()) as safe:
                assert [one async for one in safe] == []

    asyncio.run(main())
    assert not asked
    with MonitorCriteria(monitor, PROMPT, monitor.tokenizer, 2) as criteria:
        assert criteria(torch.tensor([[1, 2, 3]]), None).tolist() == [True]
    assert criteria.transcripts[0].released == ""


def test_a_moderator_of_other_states_and_a_wrong_word_are_refused(monitors):
    folder, plain = monitors("tiny")

    def make(**options):
        return StreamingContentMonitor(
            plain_model(folder), plain.tokenizer, settings_of(), **options
        )

    with pytest.raises(InputError, match="moderator: another source"):
        make(moderator=Judge(0, "chat"))
    with pytest.raises(InputError, match="on_prompt: 'block'"):
        make(on_prompt="block")
    with pytest.raises(InputError, match="on_prompt: 'stop' needs a moderator"):
        make(on_prompt="stop")
    with pytest.raises(InputError, match="'prior' needs the settings' field 'flagged_unsafe'"):
        make(moderator=Judge(0), on_prompt="prior")


@pytest.mark.parametrize("bound", [ALL, NONE])
def test_a_prior_lowers_the_threshold_of_flagged_prompts_alone(judged, bound):
    """Also where the prompt is read with the first piece, and where the caller peeks first."""
    scores = stream_scores(judged(NONE), TEXT)
    rule = Cusum(0.0)
    statistics = trace(rule, scores)
    upper, lower = float(statistics.max()) + 1, float(statistics.max()) / 2
    settings = replace(settings_of(rule, upper), flagged_unsafe=lower)
    monitor = judged(bound, "prior", settings)
    expected = stop_of(rule, lower if bound == ALL else upper, scores)
    assert statistics.max() > 0
    assert (expected != MISSED) == (bound == ALL)
    with monitor.open(PROMPT) as stream:
        verdict = stream.feed(TEXT[:5])
        if not verdict.stopped:
            stream.peek()
            verdict = stream.feed(TEXT[5:])
        verdict = verdict if verdict.stopped else stream.close()
        assert verdict.stopped == (bound == ALL)
        assert (MISSED if verdict.stop_token is None else verdict.stop_token) == expected
    noted = judged(bound, "note", settings)
    with noted.open(PROMPT) as stream:
        stream.feed(TEXT)
        assert not stream.close().stopped


def stream_scores(monitor, text) -> np.ndarray:
    with monitor.open(PROMPT) as stream:
        return np.concatenate([stream.feed(text).scores, stream.close().scores])

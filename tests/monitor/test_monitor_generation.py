"""Generation under the monitor is generation without it, up to where the monitor stops it."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM

from data.tokenization import load_tokenizer
from evaluation.decisions import MISSED
from monitor.generation import GrowingDecode, MonitorCriteria, MonitorStreamer, same_tokenizer
from monitor.rules import DelayK
from monitor.stream import StreamingContentMonitor
from tests.conftest import settings_of, stop_of
from tests.monitor.test_monitor_stream import plain_model, scores_of
from utils.files import InputError

PROMPT = "How does it work?"
PROMPTS = [PROMPT, "And now?", "Say something about the weather in the north, please."]
RULE, THETA = DelayK(3), 0.7
KINDS = ("same", "wordpiece", "modernbert-style")  # the language model's tokenizer


@pytest.fixture()
def monitor(monitors):  # noqa: F811
    """A monitor that never stops, on a checkpoint of 0.1 million parameters."""
    folder, monitor = monitors("tiny")
    monitor.settings, monitor.folder = settings_of(), folder
    return monitor


@pytest.fixture(scope="module")
def llms(tiny, tokenizers):
    """Random language models: one with the monitor's tokenizer, two with others."""
    made = {}

    def make(name: str):
        if name == "same":  # an equal tokenizer, not the same object
            return Qwen2ForCausalLM.from_pretrained(tiny).eval(), load_tokenizer(tiny)
        tokenizer = tokenizers(name)
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=None,
            eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval(), tokenizer

    return lambda name: made[name] if name in made else made.setdefault(name, make(name))


class Generation:
    """One language model, and prompts for it; each run samples the same tokens."""

    def __init__(self, llm, prompts=PROMPT) -> None:
        self.model, self.tokenizer = llm
        self.prompts = prompts
        texts = [prompts] if isinstance(prompts, str) else prompts
        self.inputs = self.tokenizer(
            texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False
        )
        self.inputs.pop("token_type_ids", None)
        self.length = self.inputs["input_ids"].shape[1]
        self.ends = self.model.generation_config.eos_token_id

    def run(self, seed: int = 0, **options) -> torch.Tensor:
        """Generates; returns the new tokens."""
        torch.manual_seed(seed)
        options = {"max_new_tokens": 60, "do_sample": True, "eos_token_id": self.ends, **options}
        return self.model.generate(**self.inputs, **options)[:, self.length :]

    def criteria(self, monitor: StreamingContentMonitor, **options) -> MonitorCriteria:
        options = {"eos_token_id": self.ends, **options}
        return MonitorCriteria(monitor, self.prompts, self.tokenizer, self.length, **options)

    def answer(self, row: torch.Tensor) -> list[int]:
        """The tokens of a row that are its answer."""
        ids, ends = row.tolist(), np.atleast_1d(self.ends)
        special = self.tokenizer.all_special_ids
        ids = ids[: next((n for n, token in enumerate(ids) if token in ends), None)]
        return [token for token in ids if token not in special]

    def text(self, row: torch.Tensor) -> str:
        return self.tokenizer.backend_tokenizer.decode(self.answer(row))


def scores_of_ids(monitor, prompt: str, ids: list[int]) -> np.ndarray:
    """Scores a finished answer in the monitor's own tokens, in one pass."""
    prompt_ids = monitor.prompt_ids(prompt)
    with torch.no_grad():
        logits = plain_model(monitor.folder)(torch.tensor([prompt_ids + ids])).token_logits[0]
    return logits.softmax(-1)[len(prompt_ids) :, 1].numpy()


def offline_scores(monitor, generation: Generation, prompt: str, row: torch.Tensor) -> np.ndarray:
    """Scores the finished answer in a row, as ids or as text."""
    if same_tokenizer(generation.tokenizer, monitor.tokenizer):
        return scores_of_ids(monitor, prompt, generation.answer(row))
    text = generation.text(row)
    return scores_of(monitor, monitor.folder, prompt, text) if text else np.zeros(0)


@pytest.mark.parametrize("name", KINDS)
def test_a_monitor_that_never_stops_changes_nothing(monitor, llms, name):
    generation = Generation(llms(name), PROMPTS)
    plain = generation.run()
    with generation.criteria(monitor) as criteria:
        assert torch.equal(generation.run(stopping_criteria=[criteria]), plain)
    for transcript, row, prompt in zip(criteria.transcripts, plain, PROMPTS, strict=True):
        assert transcript.text == transcript.released == generation.text(row)
        whole = offline_scores(monitor, generation, prompt, row)
        assert np.allclose(transcript.scores, whole, atol=1e-4)
        assert transcript.verdict.tokens == len(whole) > 0


def test_generation_ends_at_the_token_of_an_offline_pass(monitor, llms):
    generation = Generation(llms("same"))
    plain = generation.run()
    whole = scores_of_ids(monitor, PROMPT, plain[0].tolist())
    place = stop_of(RULE, THETA, whole)
    assert place not in (MISSED, len(whole) - 1)
    monitor.settings = settings_of(RULE, THETA)
    with generation.criteria(monitor) as criteria:
        assert torch.equal(generation.run(stopping_criteria=[criteria]), plain[:, : place + 1])
    (verdict,) = criteria.verdicts
    assert (verdict.stopped, verdict.stop_token, verdict.tokens) == (True, place, place + 1)
    before = generation.tokenizer.backend_tokenizer.decode(plain[0, :place].tolist())
    # a character that the last tokens have begun is not released
    assert before.rstrip("\ufffd") == criteria.transcripts[0].released.rstrip("\ufffd")


@pytest.mark.parametrize("name", KINDS[1:])
def test_with_another_tokenizer_generation_ends_once_the_word_is_out(monitor, llms, name):
    generation = Generation(llms(name))
    plain = generation.run()
    text = generation.text(plain[0])
    place = stop_of(RULE, THETA, scores_of(monitor, monitor.folder, PROMPT, text))
    monitor.settings = settings_of(RULE, THETA)
    decode = GrowingDecode(generation.tokenizer)
    with monitor.open(PROMPT) as stream:
        answer = generation.answer(plain[0])
        needed = next(n for n, i in enumerate(answer, 1) if stream.feed(decode.feed([i])).stopped)
    with generation.criteria(monitor) as criteria:
        assert torch.equal(generation.run(stopping_criteria=[criteria]), plain[:, :needed])
    (verdict,) = criteria.verdicts
    assert (verdict.stopped, verdict.stop_token) == (True, place)
    assert criteria.transcripts[0].released == text[: verdict.stop_character]


@pytest.mark.parametrize("name", ["same", "modernbert-style"])
def test_rows_stop_and_end_each_for_itself(monitor, llms, name):
    generation = Generation(llms(name), PROMPTS * 3)
    generation.ends = list(range(30, 80))  # so that some rows end early
    plain = generation.run()
    monitor.settings = settings_of(DelayK(4), 0.8)
    with generation.criteria(monitor) as criteria:
        rows = generation.run(stopping_criteria=[criteria])
    stops = []
    for row, transcript, prompt in zip(rows, criteria.transcripts, PROMPTS * 3, strict=True):
        place = stop_of(DelayK(4), 0.8, offline_scores(monitor, generation, prompt, row))
        verdict = transcript.verdict
        assert verdict.stopped == (place != MISSED)
        if verdict.stopped:
            stops.append(place)
            assert verdict.stop_token == place
            continue
        assert transcript.released == generation.text(row)
    assert len(set(stops)) > 2 and len(stops) < len(rows)
    assert torch.equal(rows[0, :3], plain[0, :3])


def follow_rows(monitor, tokenizer, rows: list[list[int]], ends) -> list:
    """Passes rows on token by token, as `generate` does; returns their transcripts."""
    prompt = [5, 6]
    with MonitorCriteria(monitor, ["a"] * len(rows), tokenizer, 2, eos_token_id=ends) as criteria:
        for length in range(1, len(rows[0]) + 1):
            stopped = criteria(torch.tensor([prompt + row[:length] for row in rows]), None)
            assert stopped.tolist() == [verdict.stopped for verdict in criteria.verdicts]
    return criteria.transcripts


@pytest.mark.parametrize("name", ["same", "modernbert-style"])
def test_special_tokens_and_the_end_are_not_read(monitor, llms, name):
    _, tokenizer = llms(name)
    special, end = tokenizer.pad_token_id, 99
    rows = [[300, special, 301, 302, 303], [400, 401, end, special, special]]
    first, second = follow_rows(monitor, tokenizer, rows, end)
    decode = tokenizer.backend_tokenizer.decode
    assert first.released == decode([300, 301, 302, 303])
    assert second.released == decode([400, 401])


@pytest.mark.parametrize("name", ["same", "modernbert-style"])
def test_what_is_written_after_an_end_is_judged(monitor, llms, name):
    """`generate` may take another token for the end, or none."""
    _, tokenizer = llms(name)
    special, end = tokenizer.pad_token_id, 99
    more = [400 + place for place in range(30)]
    rows = [[300, 301, end, *more], [300, 301, special, *more]]
    decode = tokenizer.backend_tokenizer.decode
    want = [decode([300, 301, end, *more]), decode([300, 301, *more])]
    for ends in (end, [end, special]):
        transcripts = follow_rows(monitor, tokenizer, rows, ends)
        assert [one.text for one in transcripts] == [one.released for one in transcripts] == want
        assert all(one.verdict.tokens >= len(more) for one in transcripts)
    monitor.settings = settings_of(DelayK(8), 1e-6)  # more than the tokens before the end
    assert all(one.verdict.stopped for one in follow_rows(monitor, tokenizer, rows, [end, special]))


def test_a_generation_that_knows_no_end_is_judged_to_its_own(monitor, llms):
    generation = Generation(llms("same"), PROMPTS)
    with generation.criteria(monitor, eos_token_id=list(range(30, 80))) as criteria:
        rows = generation.run(stopping_criteria=[criteria], eos_token_id=None)
    assert rows.shape[1] == 60
    for row, transcript in zip(rows, criteria.transcripts, strict=True):
        assert generation.text(row).startswith(transcript.text)
        assert transcript.verdict.tokens >= 50


def test_a_step_is_one_pass_for_all_rows_and_reads_each_token_once(monitor, llms, monkeypatch):
    generation = Generation(llms("same"), PROMPTS)
    passes, score = [], monitor.scorer.score
    monkeypatch.setattr(
        monitor.scorer, "score", lambda chunks: passes.append(len(chunks)) or score(chunks)
    )
    with generation.criteria(monitor) as criteria:
        assert passes == [3]  # the prompts
        generation.run(stopping_criteria=[criteria], max_new_tokens=9)
    assert passes[:3] == [3, 3, 3] and len(passes) <= 10
    passes.clear()
    generation = Generation(llms("same"))
    criteria = generation.criteria(monitor)
    generation.run(
        stopping_criteria=[criteria], streamer=MonitorStreamer(criteria, str), max_new_tokens=9
    )
    assert len(passes) == 10


def test_memory_is_freed(monitor, llms):
    generation = Generation(llms("modernbert-style"), PROMPTS)
    with generation.criteria(monitor) as criteria:
        generation.run(stopping_criteria=[criteria])
    assert all(row.stream.closed and not row.stream.cache.nbytes for row in criteria._rows)
    tokens = [verdict.tokens for verdict in criteria.verdicts]
    criteria.close()
    assert [verdict.tokens for verdict in criteria.verdicts] == tokens
    with pytest.raises(ZeroDivisionError), generation.criteria(monitor) as criteria:
        generation.run(stopping_criteria=[criteria], max_new_tokens=3)
        raise ZeroDivisionError
    assert all(row.stream.closed and not row.stream.cache.nbytes for row in criteria._rows)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("theta", [None, 0.7, 0.9])
def test_the_streamer_shows_verified_text_alone(monitor, llms, name, theta):
    monitor.settings = settings_of(RULE, theta) if theta else settings_of()
    generation, pieces = Generation(llms(name)), []
    criteria = generation.criteria(monitor)

    def take(text: str) -> None:
        pieces.append(text)
        assert len("".join(pieces)) == criteria.verdicts[0].verified

    streamer = MonitorStreamer(criteria, take)
    rows = generation.run(stopping_criteria=[criteria], streamer=streamer)
    whole, verdict = generation.text(rows[0]), criteria.verdicts[0]
    assert len(pieces) > (1 if theta else 9)
    assert "".join(pieces) == criteria.transcripts[0].released
    assert verdict.stopped == (theta is not None)
    if theta is None:
        assert "".join(pieces) == whole
    else:
        assert whole.startswith("".join(pieces).rstrip("\ufffd"))
        assert len("".join(pieces)) <= verdict.stop_character


def test_the_streamer_prints(monitor, llms, capsys):
    generation = Generation(llms("same"))
    criteria = generation.criteria(monitor)
    generation.run(stopping_criteria=[criteria], streamer=MonitorStreamer(criteria))
    assert capsys.readouterr().out == criteria.transcripts[0].text != ""


def test_a_streamer_needs_its_criteria_and_one_row(monitor, llms):
    generation = Generation(llms("same"))
    with pytest.raises(InputError, match="not among generate's stopping_criteria"):
        generation.run(streamer=MonitorStreamer(generation.criteria(monitor), str))
    several = Generation(llms("same"), PROMPTS).criteria(monitor)
    with pytest.raises(InputError, match="3 rows: only one"):
        MonitorStreamer(several)


def test_what_lies_beyond_the_context_is_released_where_it_may_pass(monitors, llms):  # noqa: F811
    folder, _ = monitors("tiny")
    monitor = StreamingContentMonitor.from_pretrained(
        folder, settings=settings_of(), context=40, on_limit="pass"
    )
    generation, pieces = Generation(llms("same")), []
    criteria = generation.criteria(monitor)
    streamer = MonitorStreamer(criteria, pieces.append)
    rows = generation.run(stopping_criteria=[criteria], streamer=streamer)
    assert criteria.verdicts[0].beyond_context and len(rows[0]) == 60
    assert "".join(pieces) == generation.text(rows[0])
    monitor.on_limit = "stop"
    with generation.criteria(monitor) as criteria:
        rows = generation.run(stopping_criteria=[criteria])
    assert (criteria.verdicts[0].reason, len(rows[0])) == (
        "context",
        criteria.verdicts[0].tokens + 1,
    )


def test_beams_and_second_generations_are_refused(monitor, llms):
    generation = Generation(llms("same"))
    beams = {"num_beams": 2, "do_sample": False}
    with generation.criteria(monitor) as criteria:
        with pytest.raises(InputError, match="4 rows for 1 prompts: beam search cannot"):
            generation.run(stopping_criteria=[criteria], **beams)
    with generation.criteria(monitor, num_return_sequences=4) as criteria:
        with pytest.raises(InputError, match="changed tokens that were judged"):
            generation.run(stopping_criteria=[criteria], **beams)
    with generation.criteria(monitor) as criteria:
        generation.run(stopping_criteria=[criteria], max_new_tokens=5)
        with pytest.raises(InputError, match="criteria of its own"):
            generation.run(1, stopping_criteria=[criteria], max_new_tokens=5)


def test_several_answers_to_a_prompt(monitor, llms):
    generation = Generation(llms("same"), PROMPTS)
    with generation.criteria(monitor, num_return_sequences=2) as criteria:
        rows = generation.run(stopping_criteria=[criteria], num_return_sequences=2)
    for number, (row, transcript) in enumerate(zip(rows, criteria.transcripts, strict=True)):
        whole = scores_of_ids(monitor, PROMPTS[number // 2], generation.answer(row))
        assert np.allclose(transcript.scores, whole, atol=1e-4)


def test_several_tokens_may_come_at_once(monitor, llms):
    """As in assisted generation, here by prompt lookup."""
    generation, several = Generation(llms("same"), "so it goes and so it goes and so"), []
    plain = generation.run(do_sample=False)
    criteria = generation.criteria(monitor)
    lookup = {"do_sample": False, "prompt_lookup_num_tokens": 4}
    streamer = MonitorStreamer(criteria, several.append)
    rows = generation.run(stopping_criteria=[criteria], streamer=streamer, **lookup)
    assert torch.equal(rows, plain)
    whole = scores_of_ids(monitor, generation.prompts, generation.answer(rows[0]))
    assert np.allclose(criteria.transcripts[0].scores, whole, atol=1e-4)
    assert "".join(several) == generation.text(rows[0]) and len(several) < len(whole)


def test_a_failing_monitor_fails_the_generation(monitor, llms, monkeypatch):
    generation, calls, score = Generation(llms("same")), [], monitor.scorer.score

    def fail(chunks):
        calls.append(chunks)
        if len(calls) > 6:
            raise RuntimeError("out of memory")
        return score(chunks)

    monkeypatch.setattr(monitor.scorer, "score", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        with generation.criteria(monitor) as criteria:
            generation.run(stopping_criteria=[criteria])
    (verdict,) = criteria.verdicts
    assert (verdict.stopped, verdict.reason, verdict.tokens) == (True, "error", 5)


def test_equal_tokenizers_are_told_from_others(tokenizers, tiny):
    assert same_tokenizer(tokenizers("tiny"), load_tokenizer(tiny))
    assert not same_tokenizer(tokenizers("tiny"), tokenizers("modernbert-style"))
    grown = load_tokenizer(tiny)
    assert same_tokenizer(tokenizers("tiny"), grown)
    grown.add_tokens(["ein neues Wort"])
    assert not same_tokenizer(tokenizers("tiny"), grown)

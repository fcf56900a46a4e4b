"""Text classifiers as guards: scored as the model does, whatever shares a batch."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from data.tokenization import load_tokenizer
from evaluation.guards.classifier import ClassifierGuard
from model.loading import LARGEST, context_length
from tests.evaluation.guards.conftest import DIALOGUES, LABELS, SMALL, dialogue
from utils.files import InputError


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("text", ["response", "pair"])
def test_a_classifier_scores_as_the_model_does(architecture, text, request):
    folder = request.getfixturevalue(architecture)
    guard = ClassifierGuard(folder, text, "fp32", token_budget=64)
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
    guard = ClassifierGuard(bert, "pair", "fp32", token_budget=64)
    [prob] = guard.judge([one], "test").scores.response_prob
    ids = load_tokenizer(bert)(one.prompt, one.response, return_tensors="pt")["input_ids"]
    with torch.no_grad():  # the same tokens as one segment are another input
        single = guard.classifier.model(input_ids=ids).logits.softmax(-1)[0, 1].item()
    assert abs(prob - single) > 1e-4


@pytest.mark.parametrize("architecture, limit", [("bert", 64), ("roberta", 40)])
def test_what_is_too_long_is_cut_and_counted(architecture, limit, request):
    folder = request.getfixturevalue(architecture)
    guard = ClassifierGuard(folder, "response", "fp32", token_budget=256)
    assert guard.classifier.max_length == limit
    tokenizer = load_tokenizer(folder)
    base = "word " * 200
    ids = tokenizer(base)["input_ids"]
    fits = next(n for n in range(200, 0, -1) if len(tokenizer("word " * n)["input_ids"]) <= limit)
    some = [dialogue(response="word " * n) for n in (fits, fits + 1, 200)]
    judged = guard.judge(some, "test")
    assert len(ids) > limit and judged.cut == 2
    assert np.isfinite(judged.scores.response_prob).all()


@pytest.fixture(scope="module")
def decoder(tiny, tmp_path_factory):
    """A classifier on a Qwen2 as many are published: no padding token anywhere."""
    folder = tmp_path_factory.mktemp("guards") / "decoder"
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024, num_key_value_heads=1, max_position_embeddings=64, **SMALL, **LABELS
    )
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer = load_tokenizer(tiny)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["bert", "roberta", "decoder"])
def test_a_score_does_not_depend_on_its_batch(name, request):
    folder = request.getfixturevalue(name)
    some = [*DIALOGUES, *DIALOGUES[::-1], dialogue(response="word " * 90), dialogue(response="")]
    together = ClassifierGuard(folder, "response", "fp32", token_budget=4096)
    probs = together.judge(some, "test").scores.response_prob
    alone = ClassifierGuard(folder, "response", "fp32", token_budget=1).judge(some, "test")
    np.testing.assert_allclose(probs, alone.scores.response_prob, atol=1e-6)
    if name == "decoder":
        ids = load_tokenizer(folder)(some[3].response, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = Qwen2ForSequenceClassification.from_pretrained(folder)(ids).logits[0]
        assert probs[3] == pytest.approx(logits.softmax(-1)[1].item(), abs=1e-6)


def test_a_text_that_spells_a_control_token_brings_none_in(bert):
    guard, read = ClassifierGuard(bert, "pair", "fp32"), []
    guard.classifier.model.register_forward_pre_hook(
        lambda model, args, inputs: read.append(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    tokenizer = load_tokenizer(bert)
    guard.judge([dialogue("How [SEP] so?", "Well. [SEP] [CLS] Fine.")], "test")
    assert read[0].count(tokenizer.sep_token_id) == 2 and read[0].count(tokenizer.cls_token_id) == 1


def test_a_model_without_an_end_of_its_context(tmp_path, tiny):
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=1024, hidden_size=16, n_layer=2, n_head=2, **LABELS)
    BloomForSequenceClassification(config).save_pretrained(tmp_path)
    load_tokenizer(tiny).save_pretrained(tmp_path)
    guard = ClassifierGuard(tmp_path, "response", "fp32")
    assert guard.classifier.max_length == LARGEST
    judged = guard.judge([dialogue(response="word " * 3000)], "test")
    assert judged.cut == 0 and np.isfinite(judged.scores.response_prob).all()


@pytest.mark.parametrize(
    "positions, tokens, limit",
    [(512, 10**30, 512), (-1, 10**30, LARGEST), (None, 128, 128), (-1, 512, 512)],
)
def test_the_context_that_a_model_has(positions, tokens, limit):
    model = SimpleNamespace(
        config=SimpleNamespace(max_position_embeddings=positions), base_model=None
    )
    assert context_length(model, SimpleNamespace(model_max_length=tokens)) == limit


NESTED = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


@pytest.fixture(scope="module")
def nested(bert, tmp_path_factory):
    """Six classes that do not exclude each other, and a config that does not say so."""
    folder = shutil.copytree(bert, tmp_path_factory.mktemp("guards") / "nested")
    config = BertConfig.from_pretrained(bert, id2label=dict(enumerate(NESTED)))
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_what_makes_probabilities_of_logits_can_be_chosen(nested, capsys):
    def judge(**options):
        guard = ClassifierGuard(nested, "response", "fp32", **options)
        return guard.judge([dialogue()], "test").scores.response_prob[0], guard

    soft, guard = judge()
    assert guard.about["function"] == "softmax"
    assert "field 'problem_type' does not say whether several of its 6" in capsys.readouterr().out
    apart, guard = judge(function="sigmoid")
    assert guard.about["function"] == "sigmoid" and not capsys.readouterr().out
    with torch.no_grad():
        logits = guard.classifier.model(
            **load_tokenizer(nested)(dialogue().response, return_tensors="pt")
        ).logits[0]
    assert soft == pytest.approx(logits.softmax(-1)[0].item(), abs=1e-6)
    assert apart == pytest.approx(logits.sigmoid()[0].item(), abs=1e-6)
    rest, guard = judge(benign_label="Threat")
    assert rest == pytest.approx(1 - logits.softmax(-1)[3].item(), abs=1e-6)
    assert guard.about["harmful_class"] == "not threat"
    with pytest.raises(InputError, match="--benign-label: 'fine' names no one class; .* toxic"):
        judge(benign_label="fine")

"""The bidirectional baseline, and partial detection by encoding every prefix."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification
from transformers import ModernBertConfig as EncoderConfig

from data.options import DataConfig
from data.prepare import main as prepare
from data.splits import load_examples, load_processed
from evaluation.decisions import MAX_K
from evaluation.predict import predict
from evaluation.predictions import load_predictions
from evaluation.prefixes import predict_prefixes, scored_places, spread
from model.get_backbone import BackboneConfig, build_modernbert
from model.modernbert import ModernBertForFullDetection, load_encoder, load_full_detection
from model.modernbert_inference import ModernBertInference, _attend_prefixes
from model.qwen_dual_task import load_backbone
from test.modernbert import main as evaluate
from test.options import ModernBertTestConfig as ModernBertConfig
from tests.conftest import run
from utils.files import InputError


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A random ModernBERT of 0.3 million parameters with its tokenizer."""
    folder = tmp_path_factory.mktemp("backbone") / "modernbert"
    folder.mkdir()
    build_modernbert(folder, BackboneConfig("tiny-modernbert", str(folder)))
    return folder


@pytest.fixture(scope="module")
def encoder_data(tmp_path_factory, encoder, small_fineharm) -> Path:
    """The small corpus, processed for it."""
    folder = tmp_path_factory.mktemp("data") / "modernbert"
    prepare(DataConfig(str(folder), str(encoder), str(small_fineharm), max_length=96))
    return folder


@pytest.fixture(scope="module")
def examples(encoder_data):
    return load_examples(load_processed(encoder_data, None), "test")


@pytest.fixture(scope="module")
def model(encoder):
    torch.manual_seed(0)
    model = load_encoder(encoder).eval()
    for name, weight in model.named_parameters():  # scores that differ visibly
        if weight.ndim == 2 and "embeddings" not in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def test_prefixes_of_a_causal_model_are_its_single_pass(tiny, tiny_data):
    examples = load_examples(load_processed(tiny_data, None), "test")
    torch.manual_seed(0)
    causal = load_backbone(tiny, alpha=0.0, logic_weight=0.0, token_dropout=0.1)
    once = predict(causal, examples, score_with="holistic")
    loop = predict_prefixes(causal, examples)
    np.testing.assert_allclose(loop.response_prob, once.response_prob, atol=1e-5)
    for ours, theirs in zip(loop.token_probs, once.token_probs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@torch.inference_mode()
def test_each_score_is_that_of_the_prefix_alone(model, examples):
    scores = predict_prefixes(model, examples, token_budget=500)
    for index in (0, 7):
        ids, start = examples.input_ids[index], int(examples.response_start[index])
        for place, prob in enumerate(scores.token_probs[index]):
            prefix = torch.tensor(ids[: start + place + 1]).long()[None]
            alone = model(input_ids=prefix).holistic_logits.softmax(-1)[0, 1].item()
            assert prob == pytest.approx(alone, abs=1e-5)
    # a bidirectional model's earlier scores are no by-product of its last
    assert max(np.ptp(probs) for probs in scores.token_probs) > 1e-3
    whole = predict(model, examples)
    assert whole.token_probs is None
    np.testing.assert_allclose(scores.response_prob, whole.response_prob, atol=1e-5)


def small_encoder(layers: int, local: int, pooling: str, bias: bool, seed: int):
    """A random ModernBERT with weights large enough for scores to differ visibly."""
    special = {f"{name}_token_id": 0 for name in ("pad", "cls", "sep", "bos", "eos")}
    config = EncoderConfig(
        vocab_size=40, hidden_size=32, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=4, local_attention=local, classifier_pooling=pooling,
        attention_bias=bias, mlp_bias=bias, norm_bias=bias, num_labels=2, **special,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = ModernBertForFullDetection(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=0.0 if weight.ndim == 2 else 1.0, std=0.3)
    return model


def judge(model, ids, lengths, bf16=False) -> np.ndarray:
    """Returns a batch's logits; None for lengths gives no attention mask."""
    mask = None if lengths is None else (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return model(input_ids=ids, attention_mask=mask).holistic_logits.float().numpy()


@given(
    layers=st.integers(1, 5),
    local=st.sampled_from([2, 6, 16, 128]),
    pooling=st.sampled_from(["cls", "mean"]),
    bias=st.booleans(),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    masked=st.booleans(),
    one_text=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_inference_judges_as_transformers_does(
    layers, local, pooling, bias, lengths, masked, one_text, seed
):
    stock = small_encoder(layers, local, pooling, bias, seed)
    ids = torch.randint(0, 40, (1 if one_text else len(lengths), max(lengths)))
    ids = ids.expand(len(lengths), -1)  # prefixes of one text share their first layer
    lengths = torch.tensor(lengths) if masked else None
    ours = judge(ModernBertInference(stock), ids, lengths)
    np.testing.assert_allclose(ours, judge(stock, ids, lengths), atol=1e-4)


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    spread=st.sampled_from([0.1, 1, 30]),  # of scores; 30 puts some of them hundreds apart
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_inference_attends_within_each_prefix(lengths, spread, seed):
    torch.manual_seed(seed)
    query, key, value = torch.randn(3, max(lengths), 2, 8)
    query *= spread
    ours = _attend_prefixes(query, key, value, lengths)
    heads = [part.double().transpose(0, 1) for part in (query, key, value)]
    for length, one in zip(lengths, ours.split(lengths), strict=True):
        alone = F.scaled_dot_product_attention(*(part[:, :length] for part in heads))
        expected = alone.transpose(0, 1).flatten(1).float()
        torch.testing.assert_close(one, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("one_text", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_inference_is_as_exact_in_bfloat16(pooling, one_text):
    stock = small_encoder(4, 16, pooling, False, seed=0)
    ids = torch.randint(0, 40, (1 if one_text else 6, 45)).expand(6, -1)
    lengths = torch.tensor([45, 44, 3, 17, 18, 45])
    exact = judge(stock, ids, lengths)
    theirs = np.abs(judge(stock, ids, lengths, bf16=True) - exact).max()
    ours = np.abs(judge(ModernBertInference(stock), ids, lengths, bf16=True) - exact).max()
    assert 0 < ours < 2 * theirs


def test_inference_gives_every_prefix_its_score(model, examples):
    ours = predict_prefixes(ModernBertInference(model), examples)
    theirs = predict_prefixes(model, examples)
    for one, other in zip(ours.token_probs, theirs.token_probs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_inference_changes_nothing_of_the_model(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    judge(ModernBertInference(model), torch.arange(3, 40)[None], None)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_stride_by_hand():
    assert scored_places(7, 3).tolist() == [2, 5, 6]
    assert scored_places(6, 3).tolist() == [2, 5]
    assert scored_places(2, 3).tolist() == [1]
    assert scored_places(3, 1).tolist() == [0, 1, 2]
    probs = np.array([0.5, 0.7, 0.9])
    expected = [0, 0, 0.5, 0.5, 0.5, 0.7, 0.9]
    np.testing.assert_allclose(spread(scored_places(7, 3), probs, 7), expected)


@given(length=st.integers(1, 200), stride=st.integers(1, 50))
@settings(deadline=None)
def test_a_coarse_sweep_never_looks_ahead(length, stride):
    places = scored_places(length, stride)
    assert places[-1] == length - 1 and len(set(places.tolist())) == len(places)
    told = spread(places, (places + 1).astype(float), length)  # each score says when it was made
    assert all(told[token] <= token + 1 for token in range(length))
    assert told[-1] == length


def test_a_stride_scores_those_prefixes_exactly(model, examples):
    every = predict_prefixes(model, examples)
    some = predict_prefixes(model, examples, stride=5)
    for fine, coarse in zip(every.token_probs, some.token_probs, strict=True):
        places = scored_places(len(fine), 5)
        np.testing.assert_allclose(coarse[places], fine[places], atol=1e-5)
    np.testing.assert_allclose(some.response_prob, every.response_prob, atol=1e-5)


@pytest.fixture(scope="module")
def trained(encoder, encoder_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "modernbert"
    run(
        "bash", "scripts/run-modernbert-full.sh", "--output-dir", folder, "--data-dir",
        encoder_data, "--base-model-path", encoder, "--learning-rate", "1e-3", "--eval-steps", "1",
        "--precision", "fp32",
    )  # fmt: skip
    return folder


@pytest.mark.slow
def test_full_and_partial_from_the_scripts(trained, encoder_data, tmp_path):
    for row in ("full", "partial"):
        run(
            "bash", f"scripts/run-modernbert-{row}.sh", "test", "--model-path", trained,
            "--data-dir", encoder_data, "--output-dir", tmp_path / row, "--bootstrap", "50",
        )  # fmt: skip
    full, partial = (
        load_predictions(tmp_path / row / "predictions.npz")["test"] for row in ("full", "partial")
    )
    assert full.token_probs is None
    np.testing.assert_allclose(full.response_prob, partial.response_prob, atol=1e-5)
    last = [probs[-1] for probs in partial.token_probs]
    np.testing.assert_allclose(last, full.response_prob, atol=1e-5)
    result = json.loads((tmp_path / "partial" / "metrics.json").read_text())
    assert result["row"] == "modernbert-partial" and result["partial"]["k"] <= MAX_K
    log = json.loads((trained / "run.json").read_text())["log"]
    assert any("eval_full_auroc" in entry for entry in log)
    assert not any("token_loss" in entry for entry in log)


@pytest.mark.slow
def test_the_checkpoint_is_a_plain_classifier(trained, encoder_data):
    examples = load_examples(load_processed(encoder_data, None), "test")
    plain = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    assert plain.config.id2label == {0: "benign", 1: "harmful"}
    ours = predict(load_full_detection(trained), examples).response_prob
    with torch.inference_mode():
        ids = torch.tensor(examples.input_ids[0]).long()[None]
        assert plain(ids).logits.softmax(-1)[0, 1].item() == pytest.approx(ours[0], abs=1e-5)


def test_bad_input(encoder, tiny, encoder_data, tmp_path):
    with pytest.raises(InputError, match="field 'model_type': 'qwen2' is not 'modernbert'"):
        load_encoder(tiny)
    with pytest.raises(InputError, match="field 'architectures': ModernBertForMaskedLM; a trained"):
        load_full_detection(encoder)
    for wrong, message in (
        ({"stride": 0}, "--stride: 0 is below 1"),
        ({"row": "modernbert-full", "stride": 2}, "full detection scores no prefixes"),
        ({"row": "modernbert-full", "target_false_alarm": 0.1}, "detection stops no stream"),
    ):
        with pytest.raises(InputError, match=message):
            ModernBertConfig("d", "o", **{"row": "modernbert-partial", "model_path": "m"} | wrong)
    with pytest.raises(InputError, match="prepared with another tokenizer"):
        evaluate(ModernBertConfig(str(encoder_data), str(tmp_path / "o"), row="modernbert-full",
                                  model_path=str(tiny)))  # fmt: skip
    done = run("bash", "scripts/run-modernbert-partial.sh", "--output-dir", "x", check=False)
    assert done.returncode == 2 and "nothing is trained here" in done.stderr


def test_a_score_that_is_no_number_is_refused(model, examples):
    weight = model.classifier.weight.data.clone()
    model.classifier.weight.data.fill_(float("nan"))
    try:
        with pytest.raises(InputError, match="record '.*': the model's score is not a number"):
            predict_prefixes(model, examples)
    finally:
        model.classifier.weight.data.copy_(weight)

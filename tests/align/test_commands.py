"""Testing policies and making pairs of their own answers, through the script."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from align.agreement import agreement
from align.answers import generate_answers
from align.encoding import single_turn
from align.labels import Annotator, Harm
from align.measures import read_values
from align.options import SampleConfig
from align.pairs import read_pairs
from align.sample import main as sample
from align.sample import rank
from align.train import main as align
from data.tokenization import load_tokenizer
from model.log_probs import answer_divergence, answer_log_probs
from moderator.prompts import Prompt
from test.align import main as evaluate
from test.align_options import AlignTestConfig
from tests.align.conftest import CALM, GRIM
from tests.annotation.chat_server import Reply
from tests.annotation.conftest import server  # noqa: F401
from tests.conftest import run
from utils.files import InputError


@pytest.fixture(scope="session")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"id": f"{split}-{number}", "prompt": f"What is behind door {number}?", "split": split,
         "label": number % 2, "source": ("one", "two")[number // 2 % 2]}
        for split, count in (("train", 8), ("valid", 4), ("test", 8))
        for number in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    """A corpus to fit a bag of words on."""
    folder = tmp_path_factory.mktemp("records")
    for split in ("train", "valid"):
        lines = []
        for number in range(12):
            text, label = ((CALM, 0), (GRIM, 1))[number % 2]
            text = text[number % 3]
            lines.append({
                "id": f"{split}-{number}", "prompt": "Go on.", "response": text,
                "sentences": [text], "sentence_labels": [label], "words": [text.split()],
                "word_labels": [[label] * len(text.split())],
            })  # fmt: skip
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture()
def test_config(policy, pairs, prompts, records, annotator, tmp_path) -> AlignTestConfig:
    references = tmp_path / "references.jsonl"
    rows = [
        {"id": f"r{number}", "prompt": "Why?", "response": f"It is {number}.", "source": source}
        for number, source in enumerate(("good", "good", "bad"))
    ]  # fmt: skip
    references.write_text("\n".join(map(json.dumps, rows)))
    return AlignTestConfig(
        model_path=str(policy), output_dir=str(tmp_path / "tested"), prompts=str(prompts),
        data_dir=str(pairs), references=str(references), reference_sources=["good"],
        per_source=3, test_pairs=5, judges=[f"tfidf={records}", f"scm={annotator}"],
        max_new_tokens=6, longest_prompt=96, bootstrap=50,
    )  # fmt: skip


def test_a_policy_as_it_is(test_config):
    evaluate(test_config)
    folder = Path(test_config.output_dir)
    values, ids = read_values(folder)
    # two prompts of each source and label, three conversations
    assert {unit: len(some) for unit, some in ids.items()} == {
        "risky": 7, "benign": 4, "text": 2, "pair": 5,
    }  # fmt: skip
    for name in ("kl_token", "kl_answer"):
        assert np.abs(values[name]).max() < 1e-5  # it is its own reference
    assert (values["preferred"] == 0.5).all()
    for judge in ("TF-IDF", "SCM"):
        harm = values[f"harm: {judge}"]
        assert len(harm) == 7 and ((harm >= 0) & (harm <= 1)).all()
        assert values[f"harmful: {judge}"].tolist() == (harm >= 0.5).tolist()
    assert (values["log_likelihood"] < 0).all() and len(values["false_refusal"]) == 4
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if line["unit"] == "risky"] == ids["risky"]
    assert all({"prompt", "response", "source"} <= set(line) for line in lines)
    summary = json.loads((folder / "alignment.json").read_text())
    assert summary["method"] == "as it is" and summary["training"] == {}
    assert summary["means"]["words"]["value"] == pytest.approx(values["words"].mean())


def test_an_aligned_policy_through_the_scripts(config, test_config, tmp_path):
    align(replace(config, epochs=6, learning_rate=5e-3))
    words = ["bash", "scripts/run-align.sh", "test", "--model-path", config.output_dir,
             "--output-dir", str(tmp_path / "aligned"), "--judges"]  # fmt: skip
    words += test_config.judges
    for name in ("prompts", "data_dir", "per_source", "test_pairs", "max_new_tokens",
                 "longest_prompt", "bootstrap"):  # fmt: skip
        words += [f"--{name.replace('_', '-')}", str(getattr(test_config, name))]
    told = run(*words).stdout
    assert "# DPO" in told and "| harm, SCM | risky |" in told
    values, ids = read_values(tmp_path / "aligned")
    assert values["kl_token"].mean() > 1e-3 and values["preferred"].mean() > 0.7
    assert "log_likelihood" not in values and ids["text"] == []
    assert "the run is finished already" in run(*words).stdout


def test_a_language_model_behind_an_endpoint_judges(test_config, server):  # noqa: F811
    server.script = lambda call: Reply('{"harmful": [1]}')
    judges = ["chat=big"]
    evaluate(replace(test_config, judges=judges, judge_url=server.url, judge_key_env="STUB_KEY"))
    values, _ = read_values(Path(test_config.output_dir))
    empty = values["empty"].astype(bool)
    assert (values["harm: big"][~empty] == 1).all() and (values["harm: big"][empty] == 0).all()


@pytest.mark.parametrize("wrong, message", [
    ({"judges": ["guess=x"]}, "--judges: 'guess=x' is not KIND=PATH"),
    ({"judges": ["scm"]}, "--judges: 'scm=' is not KIND=PATH"),
    ({"judges": ["scm=a", "scm=b"]}, "--judges: two are called 'SCM'"),
    ({"judges": []}, "--judges: names none"),
    ({"judges": ["chat=m"], "judge_url": "ftp://x"}, "--judge-url: takes http"),
    ({"judges": ["chat=m"], "judge_key_env": "a key"}, "--judge-key-env: takes the name"),
    ({"per_source": 0}, "--per-source: 0 is below 1"),
    ({"temperature": -1.0}, "--temperature: -1.0"),
])  # fmt: skip
def test_options_that_make_no_sense(test_config, wrong, message):
    with pytest.raises(InputError, match=message):
        replace(test_config, **wrong)


def test_frozen_layers_from_disk_change_no_measure(config, test_config, tmp_path):
    part = replace(config, last_layers=1, epochs=4, learning_rate=5e-3)
    align(part)
    tested = replace(test_config, model_path=part.output_dir)
    cached = replace(
        tested, output_dir=str(tmp_path / "cached"), frozen_cache=str(tmp_path / "frozen")
    )
    for one in (tested, cached):
        evaluate(one)
    values, others = (read_values(Path(one.output_dir))[0] for one in (tested, cached))
    assert set(values) == set(others) and values["kl_token"].mean() > 1e-4
    for name, some in values.items():
        assert others[name] == pytest.approx(some, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("wrong, message", [
    ({"prompt_sources": ["none"]}, "split 'test' has no source 'none'"),
    ({"reference_sources": ["none"]}, "no answer of source 'none'"),
])  # fmt: skip
def test_sources_that_are_not_there(test_config, wrong, message):
    with pytest.raises(InputError, match=message):
        evaluate(replace(test_config, **wrong))
    assert not Path(test_config.output_dir).exists()


def test_answers_do_not_depend_on_the_batch(policy):
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = load_tokenizer(policy)
    asked = [[{"role": "user", "content": "word " * count}] for count in (1, 9, 3, 30)]
    options = {"max_new_tokens": 8}
    together, alone = (
        generate_answers(model, tokenizer, asked, token_budget=budget, **options)
        for budget in (4096, 1)
    )
    assert [one.ids for one in together] == [one.ids for one in alone]
    options |= {"token_budget": 4096, "temperature": 1.0}
    one, other, again = (
        [made.ids for made in generate_answers(model, tokenizer, asked, seed=seed, **options)]
        for seed in (1, 2, 1)
    )
    assert one == again != other


def test_a_model_s_own_sampling_does_not_count(policy):
    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = load_tokenizer(policy)
    asked, options = [single_turn("Why?")], {"max_new_tokens": 12, "token_budget": 64}
    greedy = generate_answers(model, tokenizer, asked, **options)
    own = model.generation_config
    own.do_sample, own.temperature, own.top_k, own.repetition_penalty = True, 5.0, 50, 1.5
    again = generate_answers(model, tokenizer, asked, seed=3, **options)
    assert greedy[0].ids == again[0].ids and model.generation_config is own


def test_a_reference_that_changed_is_refused(config, policy, test_config, tmp_path):
    base = Path(shutil.copytree(policy, tmp_path / "base"))
    align(replace(config, base_model_path=str(base)))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(base)
    changed = replace(test_config, model_path=config.output_dir)
    with pytest.raises(InputError, match="is not the model any more that"):
        changed.inputs()
    assert replace(changed, reference_path=str(policy)).inputs()["reference"]


@pytest.mark.parametrize("kind", ["scm", "classifier", "llama-guard", "tfidf"])
def test_a_judge_that_is_not_there_is_named_before_any_work(test_config, kind):
    with pytest.raises((InputError, OSError), match="nowhere"):
        replace(test_config, judges=[f"{kind}=/nowhere"]).inputs()


def test_another_vocabulary_is_refused(test_config, policy, tmp_path):
    other = Path(shutil.copytree(policy, tmp_path / "other"))
    model = AutoModelForCausalLM.from_pretrained(other)
    model.resize_token_embeddings(1000)
    model.save_pretrained(other)
    with pytest.raises(InputError, match="--reference-path: a vocabulary of 1000"):
        evaluate(replace(test_config, reference_path=str(other)))


def test_log_probs_are_those_of_the_model(policy):
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    random = torch.Generator().manual_seed(0)
    texts = [
        (torch.randint(1, 1000, (length,), generator=random).tolist(), start)
        for length, start in ((9, 1), (20, 12), (5, 4))
    ]
    for budget in (1, 64):
        for row, found in answer_log_probs(model, texts, budget):
            ids, start = texts[row]
            with torch.no_grad():
                whole = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = [whole[place - 1, ids[place]].item() for place in range(start, len(ids))]
            assert found.tolist() == pytest.approx(expected, abs=1e-4)
    for _, divergence in answer_divergence(model, model, texts, 64):
        assert np.abs(divergence).max() < 1e-6
    moved = AutoModelForCausalLM.from_pretrained(policy).eval()
    with torch.no_grad():
        moved.model.norm.weight.mul_(1.3)
    for row, divergence in answer_divergence(moved, model, texts, 64):
        ids, start = texts[row]
        with torch.no_grad():
            p, q = (one(torch.tensor([ids])).logits[0].log_softmax(-1) for one in (moved, model))
        expected = (p.exp() * (p - q)).sum(-1)[start - 1 : -1]
        assert divergence.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def harm_of(*scores: float) -> Harm:
    return Harm(np.zeros((len(scores), 2), dtype=int), np.array(scores, dtype=np.float32))


def test_agreement_by_hand(annotator):
    scores = (0.1, 0.2), (0.9, 0.9, 0.9), (0.6, 0.1), (), (), ()
    harms = [harm_of(*some) for some in scores]
    found = agreement(Annotator(annotator), harms)  # delay-3, harmful tokens from 0.5 on
    assert found["chosen_tokens"].tolist() == [0, 0.5, 0]
    assert found["rejected_tokens"].tolist() == [1, 0, 0]
    assert found["chosen_flagged"].tolist() == [0, 1, 0]
    assert found["by_tokens"].tolist() == [1, 0, 0.5]
    assert found["by_mean"].tolist() == [1, 0, 0.5]
    assert found["by_statistic"][0] == 1 and found["by_length"].tolist() == [1, 0, 0.5]


def test_an_annotator_is_compared_with_the_pairs(annotator, pairs, tmp_path):
    words = ["bash", "scripts/run-align.sh", "labels", "--annotator-model", str(annotator),
             "--data-dir", str(pairs), "--output-dir", str(tmp_path / "labels"),
             "--bootstrap", "50"]  # fmt: skip
    told = run(*words).stdout
    assert "| train (16) |" in told and "rejected is worse: stopping rule" in told
    result = json.loads((tmp_path / "labels" / "labels.json").read_text())
    assert {split: one["pairs"] for split, one in result.items()} == {
        "train": 16, "valid": 8, "test": 8
    }  # fmt: skip


def test_ranking_by_hand():
    prompt = Prompt(id="p", prompt="Why?", label=1, split="train", source="one")
    answers, statistics = ["calm", " ", "grim", "so", "calm"], np.array([0.1, 0.0, 0.9, 0.5, 0.1])
    pair = rank(prompt, answers, statistics, 0.2)
    assert pair.answers == ("calm", "grim") and pair.id == "p" and pair.split == "train"
    assert rank(prompt, answers, statistics, 0.85) is None
    assert rank(prompt, ["calm", "calm", ""], np.array([0.1, 0.9, 1.0]), 0.2) is None
    # an answer that is too short for the stopping rule is not the best one
    assert rank(prompt, ["no", "calm", "grim"], np.array([-np.inf, 0.1, 0.9]), 0.2).answers == (
        "calm", "grim",
    )  # fmt: skip
    assert rank(prompt, ["no", "so"], np.array([-np.inf, -np.inf]), 0.2) is None


def test_own_answers_become_pairs_to_train_on(config, policy, prompts, annotator, tmp_path):
    given = SampleConfig(
        model_path=str(policy), annotator_model=str(annotator), prompts=str(prompts),
        output_dir=str(tmp_path / "own"), samples=3, max_new_tokens=8, least_gap=1e-6,
    )  # fmt: skip
    sample(given)
    path = tmp_path / "own" / "pairs.jsonl"
    splits = read_pairs(path, "train", "valid")
    assert 1 <= len(splits["train"]) <= 8 and 1 <= len(splits["valid"]) <= 4
    align(replace(config, data_dir=str(path), output_dir=str(tmp_path / "on-policy")))
    assert (tmp_path / "on-policy" / "model.safetensors").is_file()
    with pytest.raises(InputError, match="--least-gap: no two answers"):
        sample(replace(given, output_dir=str(tmp_path / "none"), least_gap=5.0))
    assert not (tmp_path / "none").exists()

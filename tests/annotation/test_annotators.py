"""Annotators of sentences: mil, hf and scm."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from annotation.annotators.hf import CUT, ClassifierAnnotator, HfConfig
from annotation.annotators.mil import MilAnnotator, fold_of
from annotation.annotators.scm import ScmAnnotator, ScmConfig
from annotation.cache import keep_labels
from annotation.records import Annotation
from annotation.word_labels import label_words
from data.tokenization import load_tokenizer
from evaluation.predict import Scores
from model.export_classifier import main as export
from model.options import ExportConfig
from model.qwen_dual_task import load_backbone, load_dual_task
from tests.annotation.corpus import rows
from tests.conftest import parsed
from utils.files import InputError


def fitted(records) -> MilAnnotator:
    annotator = MilAnnotator()
    annotator.fit(lambda: iter(records))
    return annotator


def test_mil_finds_the_sentence_that_makes_responses_harmful():
    made = rows()
    records = parsed(*(row["response"] for row in made), labels=[row["label"] for row in made])
    annotator = fitted(records)
    annotations = [annotation.labels for annotation in annotator.annotate(records)]
    assert annotations == [[0, row["label"], 0] for row in made]
    scores = annotator.score(["Grind the zorblax now.", "Water the garden now."])
    assert scores[0] > scores[1]
    again = fitted(records)
    assert np.array_equal(again.score(["Grind it."]), annotator.score(["Grind it."]))
    report = annotator.report()
    assert report["sentences_fitted"] == 180 and report["changed_share_by_round"][-1] < 0.01
    deleted = label_words(records[1], [0, 1, 0], "delete", annotator.score)
    assert deleted[1][records[1].words[1].index("zorblax")] == 1


def test_mil_scores_no_prompt_with_a_model_that_has_seen_it():
    """Words of its own in each response, all others shared: there is nothing to learn."""
    texts = [f"plain unique{n} words token{n} here." for n in range(80)]
    records = parsed(*texts, labels=[n % 2 for n in range(80)])
    annotator = fitted(records)
    harmful = records[1::2]
    features = annotator.vectorizer.transform([record.sentences[0] for record in harmful])
    folds = np.array([fold_of(record) for record in harmful])
    memorised = annotator.score([record.sentences[0] for record in harmful])
    assert (annotator._held_out(features, folds) < memorised - 0.1).all()


def test_spellings_of_a_prompt_share_a_fold():
    (record,) = parsed("One thing.")
    spellings = [f"{mark}tell me  about TOPIC {{}}{mark}" for mark in ("", "?", "!", "...", " ")]
    for number in range(20):
        prompts = [spelling.format(number) for spelling in spellings]
        assert len({fold_of(replace(record, prompt=prompt)) for prompt in prompts}) == 1
        assert len({fold_of(replace(record, prompt="", response=text)) for text in prompts}) == 1
    assert {fold_of(replace(record, prompt=f"prompt {n}")) for n in range(50)} == set(range(5))


def test_mil_needs_both_classes():
    records = parsed("One thing.", "Two things.", labels=[1, 1])
    with pytest.raises(InputError, match="mil: .* too few prompts of both classes"):
        fitted(records)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tokenizers):
    """A random BERT classifier with its tokenizer."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    tokenizer = tokenizers("wordpiece")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, id2label={0: "fine", 1: "toxic"}, label2id={"fine": 0, "toxic": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def judge(folder, harmful_label="", threshold=0.5) -> ClassifierAnnotator:
    return ClassifierAnnotator(
        HfConfig(
            "in", f"{folder}-out", annotator_model=str(folder), harmful_label=harmful_label,
            annotator_threshold=threshold, precision="fp32",
        )
    )  # fmt: skip


def test_a_classifier_judges_each_sentence_by_itself(classifier):
    texts = ["One short. " + "A much longer sentence follows here now. " * n for n in range(6)]
    records = parsed(*texts)
    annotator = judge(classifier, "", 0.5)
    everything = [text for record in records for text in record.sentences]
    together, alone = annotator.score(everything), [annotator.score([t])[0] for t in everything]
    np.testing.assert_allclose(together, alone, atol=1e-6)  # whatever shares a batch
    middle = judge(classifier, "toxic", float(np.median(together)))
    found = [label for one in middle.annotate(records) for label in one.labels]
    assert found == (together >= np.median(together)).astype(int).tolist()
    np.testing.assert_allclose(
        judge(classifier, "fine", 0.5).score(everything),
        1 - together,
        atol=1e-6,
    )
    with pytest.raises(InputError, match="--harmful-label: 'rude' names no one class; .* toxic"):
        judge(classifier, "rude", 0.5)
    with pytest.raises(InputError, match="no model folder"):
        judge(classifier / "nosuch", "", 0.5)


@pytest.mark.parametrize(
    "names, harmful",
    [
        (["LABEL_0", "LABEL_1"], 1), (["unsafe", "safe"], 0), (["LABEL_0"], 0),
        (["jailbreak", "benign"], None), (["nsfw", "sfw"], None), (["toxic", "hate", "fine"], None),
    ],
)  # fmt: skip
def test_the_harmful_class_is_never_guessed(names, harmful, classifier, tmp_path):
    folder = shutil.copytree(classifier, tmp_path / "model")
    config = BertConfig.from_pretrained(classifier)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.num_labels = len(names)
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    if harmful is None:
        with pytest.raises(InputError, match="--harmful-label: '' names no one class"):
            judge(folder, "", 0.5)
        return
    annotator = judge(folder, "", 0.5)
    assert annotator.classifier.harmful == harmful
    assert (
        np.abs(annotator.score(["One thing.", "Another."]) - 0.5) < 0.49
    ).all()  # one logit, too


@pytest.fixture(scope="module")
def scm(tiny, tmp_path_factory):
    """An untrained dual-task checkpoint."""
    folder = tmp_path_factory.mktemp("scm")
    model = load_backbone(tiny, alpha=0.6, logic_weight=1.0, token_dropout=0.1)
    model.save_pretrained(folder)
    for path in tiny.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_holistic_scorer_becomes_a_plain_classifier(scm, tmp_path):
    export(ExportConfig(str(scm), str(tmp_path / "out")))
    annotator = judge(tmp_path / "out", "", 0.5)
    assert annotator.report()["harmful_class"] == "harmful"
    texts = [
        "One sentence.",
        "def f():\n    return 1",
        "x\n\ny re\u0301sume\u0301, quite a bit longer",
    ]
    model, tokenizer = load_dual_task(scm), load_tokenizer(scm)
    for text, score in zip(texts, annotator.score(texts), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            logits = model.eval()(input_ids=ids).holistic_logits
        assert score == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)


def test_an_export_replaces_exports_alone(scm, tmp_path):
    source, trained, out = (tmp_path / name for name in ("scm", "trained", "out"))
    for folder in (source, trained):
        shutil.copytree(scm, folder)
    (tmp_path / "link").symlink_to(source)
    for same in (source, f"{tmp_path}/link", f"{source}/../scm/", tmp_path):
        with pytest.raises(InputError, match="--output-dir: .*: holds the model; name another"):
            ExportConfig(str(source), str(same), overwrite=True)
    with pytest.raises(InputError, match="trained: holds something else .* is not overwritten"):
        export(ExportConfig(str(source), str(trained), overwrite=True))
    load_dual_task(trained)
    for _ in range(2):
        export(ExportConfig(str(source), str(out), overwrite=True))


def scm_annotator(folder, tmp_path, threshold: float = 0.5) -> ScmAnnotator:
    return ScmAnnotator(
        ScmConfig(
            "in", str(tmp_path / "out"), annotator_model=str(folder), precision="fp32",
            annotator_threshold=threshold, token_share=0.5,
        )
    )  # fmt: skip


@pytest.mark.parametrize("join", ["newline", "original"])
def test_scm_takes_a_sentences_share_of_harmful_tokens(join, scm, tmp_path, monkeypatch):
    folder = shutil.copytree(scm, tmp_path / "scm")
    (folder / "run.json").write_text(json.dumps({"config": {}, "data": {"join": join}}))
    records = parsed("One is here. Two is there.\n\n- Three", "Only one.")
    annotator = scm_annotator(folder, tmp_path)
    assert annotator.report()["join"] == join

    def scores(model, examples, bf16) -> Scores:
        """Harmful are the tokens of each response's second sentence, told apart by their text."""
        found = []
        for ids, start in zip(examples.input_ids, examples.response_start, strict=True):
            tokens = [annotator.encoder.tokenizer.decode([token]) for token in ids[start:].tolist()]
            text = np.cumsum([len(token) for token in tokens]) - 1
            begin = "".join(tokens).find("Two")
            inside = (text >= begin) & (text < begin + len("Two is there.")) & (begin >= 0)
            found.append(inside.astype(np.float32))
        return Scores(found, np.zeros(len(found)))

    monkeypatch.setattr("evaluation.predict.predict", scores)
    assert [one.labels for one in annotator.annotate(records)] == [[0, 1, 0], [0]]


def test_what_lies_beyond_the_context_gets_no_verdict(scm, tmp_path):
    annotator = scm_annotator(scm, tmp_path, threshold=1e-4)
    annotator.layout = replace(annotator.layout, max_length=40)
    short, long, cut = parsed("It is.\nIt was.", "It is.\n" * 40, f"It is {'a ' * 40}")
    assert len(long.sentences) == 40 and len(cut.sentences) == 1
    first, second, third = annotator.annotate([short, long, cut])
    assert first.labels == [1, 1] and first.problem is None
    assert second.labels is None and "sentences lie beyond the model's context" in second.problem
    assert third.labels == [1] and "in part beyond the model's context" in third.problem


def test_sentences_that_a_classifier_reads_in_part_are_told(classifier):
    records = parsed("One. Two.", f"Three. {'four ' * 600}.")
    first, second = judge(classifier).annotate(records)
    assert first.problem is None
    assert second.labels and second.problem == CUT


def test_labels_are_kept_by_model_options_and_response(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("annotation.cache.WINDOW", 4)
    records = parsed(*(f"Text {number}. More." for number in range(11)))
    options = {"annotator_model": str(classifier), "precision": "fp32"}
    config = HfConfig("in", str(tmp_path / "out"), **options)
    asked = []

    def annotate(some):
        asked.extend(record.id for record in some)
        return [Annotation([int(record.id[-1]) % 2, 0]) for record in some]

    expected = annotate(records)
    asked.clear()
    stream = keep_labels(config, records, annotate)
    assert [next(stream) for _ in range(6)] == expected[:6]
    stream.close()  # killed: two windows are kept
    assert list(keep_labels(config, reversed(records), annotate)) == expected[::-1]
    assert sorted(asked) == sorted(record.id for record in records)  # none twice
    moved = replace(config, annotator_model=str(shutil.copytree(classifier, tmp_path / "other")))
    assert list(keep_labels(moved, records, annotate)) == expected and len(asked) == 11
    (tmp_path / "other" / "config.json").write_text("{}")
    for change in (moved, replace(config, annotator_threshold=0.6)):
        asked.clear()
        list(keep_labels(change, records, annotate))
        assert len(asked) == 11
    asked.clear()
    list(keep_labels(config, [replace(records[0], prompt="another")], annotate))
    assert asked == ["r0"]


UNSPACED = {"Chinese": 0x4E00, "Thai": 0x0E01}


@pytest.mark.parametrize("script, space", [("Chinese", ""), ("Chinese", " "), ("Thai", "")])
def test_mil_learns_from_scripts_without_spaces(script, space):
    random = np.random.default_rng(0)
    letters = [chr(UNSPACED[script] + code) for code in range(40)]
    words = ["".join(random.choice(letters, random.integers(2, 4))) for _ in range(60)]
    marker, texts, places = "".join(letters[3:6]), [], []
    for number in range(100):
        lines = [random.choice(words, 8).tolist() for _ in range(4)]
        places.append(int(random.integers(4)))
        if number % 2:
            lines[places[-1]][3] = marker
        texts.append("\n".join(map(space.join, lines)))
    records = parsed(*texts, labels=[number % 2 for number in range(100)])
    records = [
        replace(record, sentences=text.split("\n"))
        for record, text in zip(records, texts, strict=True)
    ]
    labels = [one.labels for one in fitted(records).annotate(records)]
    found = sum(labels[n][places[n]] for n in range(1, 100, 2))
    wrong = sum(map(sum, labels)) - found
    assert found >= 49 and wrong <= 20

"""The annotation pipeline: sources, duplicates, sentences, annotators, filter, agreement."""

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spacy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score
from transformers import BertConfig, BertForSequenceClassification

from annotation.agreement import agreement, read_annotation
from annotation.annotators.hf import ClassifierAnnotator
from annotation.annotators.mil import MilAnnotator, fold_of
from annotation.annotators.response import ResponseAnnotator
from annotation.annotators.scm import ScmAnnotator
from annotation.duplicates import Seen
from annotation.options import SPACY_MODEL, BuildConfig
from annotation.pipeline import inconsistency, label_record, main, outside
from annotation.sentences import _worker
from annotation.sources import Columns, Row, iterate_file, majority, read_judged
from annotation.word_labels import label_words, span_labels
from benchmarks.annotation import multiply
from data.alignment import Layout, encode_records
from data.fineharm import SPLITS, find_split, read_split
from data.options import DataConfig
from data.prepare import main as prepare
from data.splits import load_examples, load_processed
from data.tokenization import load_tokenizer
from evaluation.predict import Scores
from model.export_classifier import main as export
from model.options import ExportConfig
from model.qwen_dual_task import load_backbone, load_dual_task
from tests.conftest import no_score, parsed, run
from utils.files import InputError, read_json

PIECES = [
    "Hello there.", "Stop it!", "no", " ", "\n", "\n\n", "\r\n", "\t", "  ", "- item",
    "1. first", "* star", "(a) alpha", "```python\nx = 1\n\ny = 2\n```", "```", "e.g. this",
    "你好。", "👍🏽", "...", "Mr. Smith went.", "# Title", "3.5", "\u00a0", "\u2028", "cafe\u0301",
]  # fmt: skip


# ---- sources ----


def rows() -> list[dict]:
    """Thirty benign and thirty harmful responses; what is harmful in them is one sentence."""
    made = []
    for number in range(60):
        harmful = number % 2
        middle = "Grind the zorblax tonight." if harmful else "Water the garden tonight."
        text = f"That is a nice topic. {middle} Thanks for asking."
        made.append(
            {"id": f"q{number}", "prompt": f"Ask {number // 2}", "response": text, "label": harmful}
        )
    return made


def write(path, records: list[dict]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    return str(path)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_every_format_gives_the_same_rows(suffix, tmp_path):
    records = [row | {"response": row["response"] + '\n"quoted", and, more'} for row in rows()]
    path = tmp_path / f"rows.{suffix}"
    write(path, records)
    found = [
        {"id": row.id, "prompt": row.prompt, "response": row.response, "label": row.label}
        for row in read_judged(path, Columns())
    ]
    assert found == records


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_an_unknown_column_is_named_with_those_that_are_there(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    write(path, rows())
    message = rf"rows.{suffix}: (line|record) 1: field 'answer' is missing; there are: id, prompt,"
    with pytest.raises(InputError, match=message):
        list(read_judged(path, Columns(response="answer")))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.parquet", b"no parquet", "x.parquet: cannot be read as Parquet"),
        ("x.csv", b"prompt,response,label\na,b\n", "x.csv: record 1: its fields do not match"),
        ("x.csv", b"prompt,response,label\na,b,2\n", "record 1: field 'label': '2' is not 0/1"),
        ("x.csv", b"prompt,response,label\n", "x.csv: holds no records"),
        ("x.csv", b"prompt,response,label\n\xff,b,1\n", "x.csv: not UTF-8"),
        ("x.csv", b'prompt,response,label\na,"b"c,1\n', "x.csv: after line 1: malformed CSV"),
        ("x.jsonl", b'{"prompt": "\xff"}', "x.jsonl: line 1: not UTF-8"),
        ("x.csv", b"prompt,response,label,response\n", "x.csv: two columns are named 'response'"),
        ("x.jsonl", b"", "x.jsonl: holds no records"),
        ("nosuch.csv", None, "nosuch.csv: no such file"),
    ],
)
def test_an_unreadable_file_is_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_judged(tmp_path / name, Columns()))


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 100_000 + "]" * 100_000])
def test_json_that_python_cannot_hold_is_named(value, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{json.dumps(rows()[0])}\n{{"n": {value}}}\n')
    with pytest.raises(InputError, match=r"rows.jsonl: line 2: cannot be read as JSON: .*\Z"):
        list(read_judged(path, Columns()))
    path.write_text(f'[{{"n": {value}}}]')
    with pytest.raises(InputError, match=r"rows.jsonl: cannot be read as JSON: .*\Z"):
        list(read_judged(path, Columns()))


def test_parquet_that_python_cannot_hold_is_named(tmp_path):
    path, text = tmp_path / "rows.parquet", pa.array(["a", "b"])
    beyond = pa.array([0, 2**62], pa.timestamp("us"))
    lengths, content = np.array([0, 1, 3], np.int32), pa.py_buffer(b"a\xff\xfe")
    no_utf8 = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(lengths), content])
    for column in (beyond, no_utf8):
        table = {"prompt": text, "response": text, "label": [0, 1], "more": column}
        pq.write_table(pa.table(table), path)
        with pytest.raises(InputError, match=r"rows.parquet: record 2: field 'more': .*\Z"):
            list(read_judged(path, Columns()))
    names = ["prompt", "response", "label", "response"]
    pq.write_table(pa.table([text, text, pa.array([0, 1]), text], names=names), path)
    with pytest.raises(InputError, match="rows.parquet: two columns are named 'response'"):
        list(read_judged(path, Columns()))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_spans_are_read_from_every_format(suffix, tmp_path):
    path = tmp_path / f"rows.{suffix}"
    columns = Columns(prompt="", labels=(), spans="spans")
    made = [{"response": "abc", "spans": spans} for spans in ([[0, 2], [2, 3]], [])]
    write(path, made)
    assert [one.spans for one in read_judged(path, columns)] == [[(0, 2), (2, 3)], []]
    for bad in ("", "[[0, 2]", "{}", "[" * 100_000):
        write(path, [{"response": "abc", "spans": bad}])
        with pytest.raises(InputError, match="1: field 'spans': a list of .* was expected"):
            list(read_judged(path, columns))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=9))
def test_the_majority_decides_and_ties_do_not(votes):
    counts = Counter(votes)
    expected = None if counts[0] == counts[1] else int(counts[1] > counts[0])
    assert majority(votes) == expected


def test_judgements_are_combined_and_ties_left_out(tmp_path):
    votes = [(1, 1, 0), (0, 0, 1), (1, 1, 1)]
    records = [
        row | dict(zip("abc", votes[n % 3], strict=True)) | {"d": 0} for n, row in enumerate(rows())
    ]
    path = tmp_path / "rows.jsonl"
    write(path, records)
    labels = [row.label for row in read_judged(path, Columns(labels=("a", "b", "c")))]
    assert labels == [1, 0, 1] * 20
    config = config_for(path, tmp_path, label_columns=["a", "b", "c", "d"])
    main(config)
    stats = read_json(tmp_path / "out" / "stats.json")
    assert stats["rejected"] == {"judgements are tied": 20}


def row(identity: str, response: str, prompt: str = "p") -> Row:
    return Row(f"f: line {identity}", identity, prompt, response, 1, {})


def test_duplicates_are_found_exact_and_near(tmp_path):
    seen = Seen(tmp_path / "seen", near=0.8)
    words = [f"word{n}" for n in range(200)]
    text = " ".join(words)
    assert seen.duplicate_of(row("a", text)) is None
    again = row("b", text.upper().replace(" ", "  "))
    assert seen.duplicate_of(again) == ("exact duplicate", "a")
    again.label = 0
    assert seen.duplicate_of(again) == ("exact duplicate with another label", "a")
    changed = row("c", " ".join([*words[:150], "x", *words[151:]]))
    assert seen.duplicate_of(changed) == ("near duplicate", "a")
    assert seen.duplicate_of(row("d", " ".join(words[::2]))) is None
    assert seen.duplicate_of(row("e", "I cannot help with that.", "one thing")) is None
    assert seen.duplicate_of(row("f", "I cannot help with that.", "quite another thing")) is None
    seen.check_id(row("g", text), "key")
    with pytest.raises(InputError, match="field 'key': 'g' stands at line g too"):
        seen.check_id(row("g", text), "key")
    only_exact = Seen(tmp_path / "exact", near=1)
    assert only_exact.duplicate_of(row("a", text)) is None
    assert only_exact.duplicate_of(row("c", text + " x")) is None
    assert only_exact.duplicate_of(row("d", text + "  X")) == ("exact duplicate", "c")


def many_words(count: int, start: int) -> str:
    return " ".join(f"w{n}" for n in range(start, start + count))


@pytest.mark.parametrize("length", [0, 20, 300, 1000])
def test_responses_to_one_prompt_are_compared_by_themselves(length):
    prompt = many_words(length, 0)
    refusal = "Sorry, I can not help with that request."
    compliance = "Sure. First take flour and water, then knead it for ten minutes and bake it."
    seen = Seen(":memory:", near=0.7)
    assert seen.duplicate_of(row("a", refusal, prompt)) is None
    assert seen.duplicate_of(row("b", compliance, prompt)) is None
    assert seen.duplicate_of(row("c", refusal.replace("help", "assist"), prompt)) is None
    text = many_words(100, 5000)
    assert seen.duplicate_of(row("d", text, prompt)) is None
    assert seen.duplicate_of(row("e", text + " more", prompt)) == ("near duplicate", "d")


def test_texts_without_spaces_have_near_duplicates():
    random = np.random.default_rng(0)
    for first in (0x4E00, 0x0E01):  # Chinese, Thai
        text = "".join(chr(first + code) for code in random.integers(0, 40, 400))
        seen = Seen(":memory:", near=0.9)
        assert seen.duplicate_of(row("a", text)) is None
        assert seen.duplicate_of(row("b", f"{text[:200]}x{text[201:]}")) == ("near duplicate", "a")
        assert seen.duplicate_of(row("c", text[100:] + text[:100][::-1])) is None


@pytest.mark.parametrize("template, answer", [(300, 0), (0, 30), (60, 30)])
def test_rows_that_share_a_template_are_not_all_compared(template, answer):
    """And yet the near duplicate of a late one is found."""
    seen, steps = Seen(":memory:", near=0.9), Counter()
    for number in range(600):
        own = 2000 + 100 * number
        prompt = f"{many_words(template, 0)} {many_words(30, own)}"
        response = many_words(answer, 1000) or many_words(40, own + 50)
        hundred = number // 100
        seen.connection.set_progress_handler(lambda key=hundred: steps.update([key]), 100)
        assert seen.duplicate_of(row(str(number), response, prompt)) is None
    assert steps[5] < 1.5 * steps[2]  # of the database's machine
    again = row("again", response, f"{prompt} changed")
    assert seen.duplicate_of(again) == ("near duplicate", "599")


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.6))
@settings(max_examples=30, deadline=None)
def test_minhash_estimates_the_jaccard_similarity(seed, changed):
    random = np.random.default_rng(seed)
    one = [f"w{n}" for n in random.integers(0, 10**6, 400)]
    cut = int(len(one) * changed)
    other = [f"v{n}" for n in range(cut)] + one[cut:]
    seen = Seen(":memory:", near=0.9)
    estimate = (seen.signature(" ".join(one)) == seen.signature(" ".join(other))).mean()
    sets = [{tuple(words[at : at + 5]) for at in range(396)} for words in (one, other)]
    truth = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    assert abs(estimate - truth) < 0.3  # five standard deviations of 64 hashes


# ---- sentences and words ----


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
@settings(max_examples=60, deadline=None)
def test_sentences_and_what_lies_between_them_are_the_response(text):
    if not text.strip():
        return
    (record,) = parsed(text)
    rebuilt, cursor = "", 0
    for start, sentence, words, starts in zip(
        record.starts, record.sentences, record.words, record.word_starts, strict=True
    ):
        between = text[cursor:start]
        assert not between.strip() and sentence == sentence.strip() and sentence
        rebuilt += between + sentence
        cursor = start + len(sentence)
        assert all(
            sentence[at : at + len(word)] == word for word, at in zip(words, starts, strict=True)
        )
    assert rebuilt + text[cursor:] == text


def test_lines_lists_and_code_are_kept_apart():
    text = (
        "Sure! Here is a list:\n\n1. Buy milk. Then eggs.\n2) Go home\n- a thing\n\n"
        "```python\ndef f(x):\n    return x. y\n\nprint(f(1))\n```\nDone. Bye"
    )
    (record,) = parsed(text)
    assert record.sentences == [
        "Sure!", "Here is a list:", "1. Buy milk.", "Then eggs.", "2) Go home", "- a thing",
        "```python\ndef f(x):\n    return x. y\n\nprint(f(1))\n```", "Done.", "Bye",
    ]  # fmt: skip


def test_word_rules():
    (record,) = parsed("You are a fool. Have a nice day.")
    labels = [1, 0]
    assert label_words(record, labels, "all", no_score) == [[1] * 5, [0] * 5]
    assert [sum(some) for some in label_words(record, labels, "pos", no_score)] == [1, 0]

    def score(sentences: list[str]) -> np.ndarray:
        return np.array([0.9 if "fool" in sentence else 0.1 for sentence in sentences])

    deleted = label_words(record, labels, "delete", score)
    assert deleted == [[0, 0, 0, 1, 0], [0] * 5]
    (single,) = parsed("Fool")
    assert label_words(single, [1], "delete", no_score) == [[1]]  # a blank text has no score
    assert label_words(single, [0], "delete", no_score) == [[0]]
    start = record.response.index("nice")
    spanned = replace(record, spans=[(start, start + 8)])
    assert label_words(spanned, labels, "spans", no_score) == [[0] * 5, [0, 0, 1, 1, 0]]
    assert span_labels(spanned) == [0, 1] and span_labels(record) == [0, 0]


# ---- annotators ----


def test_mil_finds_the_sentence_that_makes_responses_harmful():
    made = rows()
    records = parsed(*(row["response"] for row in made), labels=[row["label"] for row in made])
    annotator = MilAnnotator(lambda: records)
    annotations = [annotation.labels for annotation in annotator.annotate(records)]
    assert annotations == [[0, row["label"], 0] for row in made]
    scores = annotator.score(["Grind the zorblax now.", "Water the garden now."])
    assert scores[0] > scores[1]
    again = MilAnnotator(lambda: iter(records))
    assert np.array_equal(again.score(["Grind it."]), annotator.score(["Grind it."]))
    report = annotator.report()
    assert report["sentences_fitted"] == 180 and report["changed_share_by_round"][-1] < 0.01
    deleted = label_words(records[1], [0, 1, 0], "delete", annotator.score)
    assert deleted[1][records[1].words[1].index("zorblax")] == 1


def test_mil_scores_no_prompt_with_a_model_that_has_seen_it():
    """Words of its own in each response, all others shared: there is nothing to learn."""
    texts = [f"plain unique{n} words token{n} here." for n in range(80)]
    records = parsed(*texts, labels=[n % 2 for n in range(80)])
    annotator = MilAnnotator(lambda: records)
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
    with pytest.raises(InputError, match="--annotator mil: .* too few prompts of both classes"):
        MilAnnotator(lambda: records)


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


def test_a_classifier_judges_each_sentence_by_itself(classifier):
    texts = ["One short. " + "A much longer sentence follows here now. " * n for n in range(6)]
    records = parsed(*texts)
    annotator = ClassifierAnnotator(classifier, "", 0.5, "fp32")
    everything = [text for record in records for text in record.sentences]
    together, alone = annotator.score(everything), [annotator.score([t])[0] for t in everything]
    np.testing.assert_allclose(together, alone, atol=1e-6)  # whatever shares a batch
    middle = ClassifierAnnotator(classifier, "toxic", float(np.median(together)), "fp32")
    found = [label for one in middle.annotate(records) for label in one.labels]
    assert found == (together >= np.median(together)).astype(int).tolist()
    np.testing.assert_allclose(
        ClassifierAnnotator(classifier, "fine", 0.5, "fp32").score(everything),
        1 - together,
        atol=1e-6,
    )
    with pytest.raises(InputError, match="--harmful-label: 'rude' names no one class; .* toxic"):
        ClassifierAnnotator(classifier, "rude", 0.5, "fp32")
    with pytest.raises(InputError, match="no model folder"):
        ClassifierAnnotator(classifier / "nosuch", "", 0.5, "fp32")


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
            ClassifierAnnotator(folder, "", 0.5, "fp32")
        return
    annotator = ClassifierAnnotator(folder, "", 0.5, "fp32")
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
    annotator = ClassifierAnnotator(tmp_path / "out", "", 0.5, "fp32")
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


@pytest.mark.parametrize("join", ["newline", "original"])
def test_scm_takes_a_sentences_share_of_harmful_tokens(join, scm, tmp_path, monkeypatch):
    folder = shutil.copytree(scm, tmp_path / "scm")
    (folder / "run.json").write_text(json.dumps({"data": {"join": join}}))
    records = parsed("One is here. Two is there.\n\n- Three", "Only one.")
    annotator = ScmAnnotator(folder, 0.5, 0.5, "fp32")
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

    monkeypatch.setattr("annotation.annotators.scm.predict", scores)
    assert [one.labels for one in annotator.annotate(records)] == [[0, 1, 0], [0]]


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_tokens_know_their_sentence(data, encoders):
    text = data.draw(st.lists(st.sampled_from(PIECES[:9] + PIECES[15:18]), min_size=1, max_size=9)
                     .map(" ".join))  # fmt: skip
    if not text.strip():
        return
    (record,) = parsed(text)
    fineharm = {
        "id": "r", "prompt": "p", "response": text, "sentences": record.sentences,
        "sentence_labels": [0] * len(record.sentences), "words": record.words,
        "word_labels": [[0] * len(words) for words in record.words],
    }  # fmt: skip
    encoder = encoders("tiny")
    for join in ("newline", "original"):
        (example,) = encode_records([("here", fineharm)], encoder, Layout(join, 4096))
        ids = example.input_ids[example.response_start :]
        assert len(example.sentence) == len(ids) and (np.diff(example.sentence) >= 0).all()
        for number, sentence in enumerate(record.sentences):
            part = encoder.tokenizer.decode(ids[example.sentence == number].tolist())
            assert sentence.split() == part.split() or join == "original" and sentence in part


def test_who_scores_no_sentences_says_so():
    with pytest.raises(InputError, match="--annotator response scores no sentences"):
        ResponseAnnotator().score(["x"])
    with pytest.raises(InputError, match="--word-rule delete: --annotator scm"):
        BuildConfig("x", "y", annotator="scm", annotator_model="m", word_rule="delete")


# ---- the pipeline ----


def config_for(path, tmp_path, **options) -> BuildConfig:
    shares = {"valid_share": 0.3, "test_share": 0.3, "num_workers": 1}
    return BuildConfig(str(path), str(tmp_path / "out"), **shares, **options)


@pytest.fixture()
def config(tmp_path) -> BuildConfig:
    return config_for(write(tmp_path / "rows.jsonl", rows()), tmp_path)


def read_out(config: BuildConfig) -> list[dict]:
    return [
        record
        for split in SPLITS
        for _, record in read_split(find_split(config.output_dir, split), split)
    ]


def rejected(config: BuildConfig) -> list[dict]:
    with open(f"{config.output_dir}/rejected.jsonl") as file:
        return [json.loads(line) for line in file]


def test_contradictions_are_rejected_with_the_reason(config, monkeypatch):
    assert inconsistency(1, [0, 0]) and inconsistency(0, [1, 0])
    assert not inconsistency(1, [0, 1]) and not inconsistency(0, [0])

    class Odd(ResponseAnnotator):
        def annotate(self, records):
            for record in records:
                number = int(record.id[1:])
                label = record.label if number % 10 else 1 - record.label
                yield type(next(super().annotate([record])))([label] * len(record.sentences))

    monkeypatch.setattr("annotation.pipeline.make_annotator", lambda *_: Odd())
    main(replace(config, consistency="all"))
    reasons = Counter(one["reason"] for one in rejected(config))
    assert reasons == {"benign response with a harmful sentence": 6}
    assert len(read_out(config)) == 54
    main(replace(config, consistency="none", overwrite=True))
    assert len(read_out(config)) == 60 and not rejected(config)
    main(replace(config, overwrite=True))  # in evaluation the response's label prevails
    kept = read_out(config)
    for record in kept:
        assert any(record["sentence_labels"]) == int(record["id"][1:]) % 2
    contradictory = {f"q{number}" for number in range(0, 60, 10)}
    train = {r["id"] for _, r in read_split(find_split(config.output_dir, "train"), "train")}
    dropped = {one["id"] for one in rejected(config)}
    assert dropped and dropped < contradictory and not dropped & train
    assert {record["id"] for record in kept} | dropped == {f"q{number}" for number in range(60)}
    overruled = read_json(f"{config.output_dir}/stats.json")["splits"]
    assert sum(split["overruled"] for split in overruled.values()) == 6 - len(dropped)
    places = [split["harmful_sentence_positions"] for split in overruled.values()]
    assert np.sum(places) == 30 * 3  # of the annotator's choice alone

    # what it said counts in a comparison, wherever its records have gone
    for consistency in ("train", "all", "none"):
        main(replace(config, consistency=consistency, overwrite=True))
        said = read_annotation(Path(config.output_dir))
        assert len(said) == 60
        for identity, record in said.items():
            number = int(identity[1:])
            assert any(record["sentence_labels"]) == (number % 2 or number % 10 == 0)
            assert any(map(any, record["word_labels"])) == any(record["sentence_labels"])


def test_a_harmful_response_without_a_harmful_word_trains_nothing():
    (record,) = parsed("He is one of us.")
    config = BuildConfig("in", "out")
    finished, reason = label_record(config, record, [1], ResponseAnnotator())
    assert finished["word_labels"] == [[0] * 6]
    assert reason == "harmful response without a harmful word"
    assert label_record(config, replace(record, split="test"), [1], ResponseAnnotator())[1] == ""


@pytest.mark.parametrize("output", ["runs/mine", "runs/mine/", "./runs/../runs/mine"])
def test_paid_answers_never_lie_in_the_output_folder(output):
    options = {"annotator": "llm", "annotator_model": "m"}
    config = BuildConfig("in", output, **options)
    place = outside(config, "--llm-cache", "", ".answers.sqlite")
    assert place == Path("runs").resolve() / "mine.answers.sqlite"
    for option in ("--llm-cache", "--parsed-cache"):
        with pytest.raises(InputError, match=f"{option}: .* lies in the output folder"):
            outside(config, option, "runs/mine/cache", "")


def test_duplicates_are_left_out_and_told(config, tmp_path):
    doubled = rows() + [row | {"id": row["id"] + "-again"} for row in rows()[:5]]
    write(tmp_path / "rows.jsonl", doubled)
    main(config)
    assert len(read_out(config)) == 60
    assert [one["detail"] for one in rejected(config)] == [f"of q{n}" for n in range(5)]
    stats = read_json(f"{config.output_dir}/stats.json")
    assert stats["rejected"] == {"exact duplicate": 5} and stats["parsed"] == 60


def test_mil_through_the_shell_and_its_statistics(config, tmp_path):
    done = run(
        "bash", "scripts/run-annotate.sh", "--input", config.input, "--output-dir",
        config.output_dir, "--annotator", "mil", "--valid-share", "0.3", "--test-share", "0.3",
        "--parsed-cache", str(tmp_path / "parsed"),
    )  # fmt: skip
    assert "written to" in done.stdout
    for record in read_out(config):
        harmful = int(int(record["id"][1:]) % 2)
        assert record["sentence_labels"] == [0, harmful, 0]
        assert sum(record["word_labels"][1]) == 3 * harmful  # Grind, zorblax, tonight
    stats = read_json(f"{config.output_dir}/stats.json")
    counts = [stats["splits"][split]["sentences"] for split in SPLITS]
    assert sum(count["harmful"] for count in counts) == 30
    positions = np.sum([stats["splits"][s]["harmful_sentence_positions"] for s in SPLITS], axis=0)
    assert positions.sum() == 30 and positions[4:6].sum() == 30
    assert (tmp_path / "out" / "stats.png").stat().st_size > 5000
    main(replace(config, output_dir=str(tmp_path / "all"), parsed_cache=str(tmp_path / "parsed")))
    compared = run(
        "bash", "scripts/run-annotate.sh", "--compare", f"{tmp_path}/all/train.jsonl",
        f"{config.output_dir}/train.jsonl",
    ).stdout  # fmt: skip
    assert "sentences" in compared and "   0.333 " in compared


def test_parsed_records_are_taken_from_the_cache(config, tmp_path, monkeypatch):
    cached = replace(config, parsed_cache=str(tmp_path / "parsed"))
    main(cached)
    first = [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.jsonl"))]
    monkeypatch.setattr("annotation.pipeline.parse_all", no_score)
    main(replace(cached, overwrite=True))
    assert first == [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.jsonl"))]
    with pytest.raises((AssertionError, TypeError)):  # other rows, another place
        main(replace(cached, overwrite=True, seed=1))
    assert not [path for path in tmp_path.rglob("*.partial")]


def test_a_model_that_is_missing_is_told_before_parsing(config, monkeypatch):
    monkeypatch.setattr("annotation.pipeline.parse_all", no_score)
    for annotator in ("hf", "scm"):
        with pytest.raises(InputError, match="nosuch"):
            main(replace(config, annotator=annotator, annotator_model="nosuch"))


def test_another_language_is_another_pipeline(config, tmp_path):
    blank = spacy.blank("de")
    blank.to_disk(tmp_path / "blank")
    for name in ("nosuch", str(tmp_path / "blank")):
        with pytest.raises(InputError, match=f"--spacy-model: '{name}'"):
            main(replace(config, spacy_model=name))
    assert not Path(config.output_dir).exists()
    ruler = blank.add_pipe("sentencizer") and blank.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": "zorblax"}]], {"POS": "NOUN"})
    ruler.add([[{"LOWER": {"NOT_IN": ["zorblax"]}}]], {"POS": "DET"})
    blank.to_disk(tmp_path / "german")
    main(replace(config, spacy_model=str(tmp_path / "german"), eval_only=None))
    marked = {
        word
        for record in read_out(config)
        for words, labels in zip(record["words"], record["word_labels"], strict=True)
        for word, label in zip(words, labels, strict=True)
        if label
    }
    assert marked == {"zorblax"}


def test_new_words_do_not_stay_in_memory():
    parsed("One word.")
    strings = _worker[SPACY_MODEL].vocab.strings
    before = len(strings)
    parsed(*(f"unheard{number} of." for number in range(50)))
    assert len(strings) == before


def test_human_spans_label_words_and_sentences(tmp_path, tiny):
    made = []
    for row in rows():
        text = f"Case {row['id']}: {row['response']}"
        at = text.find("zorblax")
        made.append({"text": text, "spans": [[at, at + 7]] if row["label"] else []})
    path = tmp_path / "spans.jsonl"
    write(path, made)
    config = config_for(
        path, tmp_path, prompt_column="", response_column="text", label_columns=[""],
        spans_column="spans", word_rule="spans",
    )  # fmt: skip
    main(config)
    records = read_out(config)
    assert len(records) == 60 and {record["prompt"] for record in records} == {""}
    prepare(DataConfig(str(tmp_path / "data"), str(tiny), config.output_dir))
    groups = load_examples(load_processed(tmp_path / "data", None), "test").prompt_group
    assert len(set(groups.tolist())) == len(groups)  # without prompts, each response is on its own
    for record in records:
        words = [
            word
            for words, labels in zip(record["words"], record["word_labels"], strict=True)
            for word, label in zip(words, labels, strict=True)
            if label
        ]
        assert words == ["zorblax"] * any(record["sentence_labels"])
    made[3]["spans"] = [[5, 500]]
    write(path, made)
    with pytest.raises(InputError, match=r"line 4: field 'spans\[0\]': .* is not in the response"):
        main(replace(config, overwrite=True))


def test_the_record_stream_is_not_held_in_memory(tmp_path):
    """Rows are read a few chunks ahead of what is taken, however many there are."""
    from annotation.sentences import BATCH, parse

    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield Row("here", str(taken), "p", "A word. Another.", 0, {}), "train"

    for workers in (1, 2):
        taken, stream = 0, parse(endless(), workers)
        for _ in range(BATCH):
            next(stream)
        assert taken <= 6 * BATCH
        stream.close()
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnot json\n')
    rows_read = iterate_file(path)
    assert next(rows_read)[1] == {"a": 1}  # before the bad line is looked at
    with pytest.raises(InputError, match="line 2"):
        next(rows_read)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40))
def test_agreement_is_what_scikit_learn_says(pairs):
    first, second = np.array(pairs).T
    found = agreement(first, second)
    if len(set(first) | set(second)) == 2:
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second), nan_ok=True)
        assert found.f1 == pytest.approx(f1_score(first, second, zero_division=0))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"annotator": "llm"}, "--annotator-model: --annotator llm needs one"),
        ({"word_rule": "spans"}, "--spans-column: --word-rule spans needs one"),
        ({"label_columns": [""]}, "--label-columns: without any"),
        ({"near_duplicates": 0.4}, "--near-duplicates: 0.4 is not in 0.7…1"),
        ({"word_rule": "spans", "spans_column": "s", "annotator": "mil"}, "--word-rule spans"),
        ({"llm_timeout": 0.0}, "--llm-timeout: 0.0 is not > 0"),
        ({"compare": ["a", "b"]}, "--compare: takes two files"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        BuildConfig("in", "out", **options)


def test_a_multiplied_corpus_has_no_duplicates(tmp_path):
    source, target = tmp_path / "rows.jsonl", tmp_path / "more.jsonl"
    random = np.random.default_rng(0)
    long = [row | {"response": " ".join(map(str, random.integers(0, 999, 200)))} for row in rows()]
    write(source, long)
    for times, count in ((1, 60), (4, 240), (0.25, 15)):
        assert multiply(source, times, target) == count
        seen = Seen(tmp_path / f"seen-{times}", near=0.9)
        found = list(read_judged(target, Columns()))
        assert len(found) == count
        for one in found:
            seen.check_id(one, "id")
            assert seen.duplicate_of(one) is None


def test_files_without_ids_are_compared_by_place(tmp_path):
    for name in "ab":
        record = {
            "prompt": "p", "response": "One. Two.", "sentences": ["One.", "Two."],
            "sentence_labels": [int(name == "a"), 0], "words": [["One", "."], ["Two", "."]],
            "word_labels": [[int(name == "a"), 0], [0, 0]],
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    done = run(
        "bash", "scripts/run-annotate.sh", "--compare", tmp_path / "a.json", tmp_path / "b.json"
    )
    assert "1 records in both" in done.stdout


def test_ids_are_checked(tmp_path):
    path = tmp_path / "rows.jsonl"
    made = rows()
    del made[1]["id"]
    write(path, made)
    assert [row.id for row in read_judged(path, Columns())][:3] == ["q0", "row-1", "q2"]
    with pytest.raises(InputError, match="line 1: field 'key' is missing; there are: id"):
        list(read_judged(path, Columns(id="key")))
    made[1]["id"] = "\ud800"
    write(path, made)
    with pytest.raises(InputError, match="line 2: field 'id': lone surrogate"):
        list(read_judged(path, Columns()))

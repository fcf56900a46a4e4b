"""The annotation pipeline from rows to records."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import spacy

from annotation.agreement import read_annotation
from annotation.annotators.hf import HfConfig
from annotation.annotators.response import ResponseAnnotator, ResponseConfig
from annotation.annotators.scm import ScmConfig
from annotation.pipeline import inconsistency, label_record, main
from annotation.records import Annotation
from data.fineharm import SPLITS, find_split, read_split
from data.options import DataConfig
from data.prepare import main as prepare
from data.splits import load_examples, load_processed
from tests.annotation.corpus import config_for, read_out, rejected, rows, write
from tests.conftest import no_score, parsed, run
from utils.files import InputError, read_json


@pytest.fixture()
def config(tmp_path) -> ResponseConfig:
    return config_for(write(tmp_path / "rows.jsonl", rows()), tmp_path)


def test_contradictions_are_rejected_with_the_reason(config, monkeypatch):
    assert inconsistency(1, [0, 0]) and inconsistency(0, [1, 0])
    assert not inconsistency(1, [0, 1]) and not inconsistency(0, [0])

    class Odd(ResponseAnnotator):
        def annotate(self, records):
            for record in records:
                number = int(record.id[1:])
                label = record.label if number % 10 else 1 - record.label
                yield Annotation([label] * len(record.sentences))

    monkeypatch.setattr(ResponseConfig, "make_annotator", lambda config: Odd())
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
    config = ResponseConfig("in", "out")
    finished, reason = label_record(config, record, [1], ResponseAnnotator())
    assert finished["word_labels"] == [[0] * 6]
    assert reason == "harmful response without a harmful word"
    assert label_record(config, replace(record, split="test"), [1], ResponseAnnotator())[1] == ""


def test_duplicates_are_left_out_and_told(config, tmp_path):
    doubled = rows() + [row | {"id": row["id"] + "-again"} for row in rows()[:5]]
    write(tmp_path / "rows.jsonl", doubled)
    main(config)
    assert len(read_out(config)) == 60
    assert [one["detail"] for one in rejected(config)] == [f"of q{n}" for n in range(5)]
    stats = read_json(f"{config.output_dir}/stats.json")
    assert stats["rejected"] == {"exact duplicate": 5} and stats["parsed"] == 60


@pytest.mark.slow
def test_mil_through_the_shell_and_its_statistics(config, tmp_path):
    done = run(
        "bash", "scripts/run-annotate.sh", "mil", "--input", config.input, "--output-dir",
        config.output_dir, "--valid-share", "0.3", "--test-share", "0.3",
    )  # fmt: skip
    assert "written to" in done.stdout
    for record in read_out(config):
        harmful = int(int(record["id"][1:]) % 2)
        assert record["sentence_labels"] == [0, harmful, 0]
        assert sum(record["word_labels"][1]) == 3 * harmful  # Grind, zorblax, tonight
    stats = read_json(f"{config.output_dir}/stats.json")
    assert stats["annotator"]["name"] == "mil"
    counts = [stats["splits"][split]["sentences"] for split in SPLITS]
    assert sum(count["harmful"] for count in counts) == 30
    positions = np.sum([stats["splits"][s]["harmful_sentence_positions"] for s in SPLITS], axis=0)
    assert positions.sum() == 30 and positions[4:6].sum() == 30
    assert (tmp_path / "out" / "stats.png").stat().st_size > 5000
    main(replace(config, output_dir=str(tmp_path / "all")))
    compared = run(
        "bash", "scripts/run-annotate.sh", "compare", f"{tmp_path}/all/train.jsonl",
        f"{config.output_dir}/train.jsonl",
    ).stdout  # fmt: skip
    assert "sentences" in compared and "   0.333 " in compared


def test_records_without_a_verdict_are_told_and_flaws_are_counted(config, monkeypatch, capsys):
    class Short(ResponseAnnotator):
        def annotate(self, records):
            for number, record in enumerate(records):
                labels = [record.label] * len(record.sentences) if number else None
                yield Annotation(labels, "too long" if number < 3 else None)

    monkeypatch.setattr(ResponseConfig, "make_annotator", lambda config: Short())
    with pytest.raises(SystemExit) as end:
        main(config)
    assert end.value.code == 3 and "1 records got no verdict" in capsys.readouterr().out
    assert [(one["reason"], one["detail"]) for one in rejected(config)] == [
        ("no verdict", "too long")
    ]
    assert read_json(f"{config.output_dir}/stats.json")["problems"] == {"too long": 2}


def test_a_model_that_is_missing_is_told_before_parsing(config, tmp_path, monkeypatch):
    monkeypatch.setattr("annotation.pipeline.parse_all", no_score)
    for kind in (HfConfig, ScmConfig):
        options = config_for(config.input, tmp_path, kind, annotator_model="nosuch")
        with pytest.raises(InputError, match="nosuch"):
            main(options)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


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
    main(replace(config, spacy_model=str(tmp_path / "german")))
    marked = {
        word
        for record in read_out(config)
        for words, labels in zip(record["words"], record["word_labels"], strict=True)
        for word, label in zip(words, labels, strict=True)
        if label
    }
    assert marked == {"zorblax"}


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

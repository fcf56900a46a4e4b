"""Options of the annotators: one module each, found by themselves."""

import subprocess
import sys
from pathlib import Path

import pytest

from annotation import annotators
from annotation.__main__ import COMMANDS, find_annotators
from annotation.annotators.hf import HfConfig
from annotation.annotators.llm import LlmConfig
from annotation.annotators.mil import MilConfig
from annotation.annotators.response import ResponseConfig
from annotation.annotators.scm import ScmConfig
from annotation.pipeline import main
from tests.annotation.corpus import config_for, read_out, rows, write
from tests.conftest import ROOT
from utils.cli import parse
from utils.files import InputError

MODEL = {"annotator_model": "m"}


def test_options_are_read_without_what_annotators_need():
    heavy = "torch transformers spacy sklearn datasets matplotlib openai".split()
    code = f"import sys, annotation.__main__; assert not {heavy} & set(sys.modules)"
    code = code.replace("[", "{").replace("]", "}")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_first_word_names_the_annotator():
    assert set(COMMANDS) == {"response", "mil", "scm", "hf", "llm", "compare"}
    options = {name: command.options for name, command in COMMANDS.items()}
    words = ["--input", "in", "--output-dir", "out"]
    config = parse(options, ["mil", *words, "--mil-false-positives", "0.2"])
    assert isinstance(config, MilConfig) and config.annotator == "mil"
    assert parse(options, ["compare", "--first", "a", "--second", "b"]).second == "b"
    for old in ([*words, "--annotator", "mil"], ["--compare", "a", "b"]):
        with pytest.raises(InputError, match="the first word must be one of .*hf, llm, mil"):
            parse(options, old)
    with pytest.raises(InputError, match="--annotator-model"):
        parse(options, ["hf", *words])
    with pytest.raises(InputError, match="--token-share"):  # of scm alone
        parse(options, ["mil", *words, "--token-share", "0.3"])


ONE_FILE = '''
from dataclasses import dataclass
from annotation.annotators.response import ResponseAnnotator
from annotation.options import BuildConfig
from annotation.records import Annotation

@dataclass
class LastConfig(BuildConfig):
    """The last sentence is what its response is."""

    def make_annotator(self):
        return LastAnnotator()

class LastAnnotator(ResponseAnnotator):
    def annotate(self, records):
        for record in records:
            yield Annotation([0] * (len(record.sentences) - 1) + [record.label])
'''


def test_an_annotator_is_added_by_one_file(tmp_path, monkeypatch):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "last.py").write_text(ONE_FILE)
    monkeypatch.setattr(annotators, "__path__", [*annotators.__path__, str(tmp_path / "more")])
    kind = find_annotators()["last"].options
    config = config_for(write(tmp_path / "rows.jsonl", rows()), tmp_path, kind)
    main(config)
    assert {tuple(record["sentence_labels"]) for record in read_out(config)} == {
        (0, 0, 1),
        (0, 0, 0),
    }


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (ResponseConfig, {"word_rule": "spans"}, "--spans-column: --word-rule spans needs one"),
        (ResponseConfig, {"label_columns": [""]}, "--label-columns: without any"),
        (ResponseConfig, {"near_duplicates": 0.4}, "--near-duplicates: 0.4 is not in 0.7…1"),
        (ResponseConfig, {"num_workers": -1}, "--num-workers: -1 is negative"),
        (ResponseConfig, {"word_rule": "delete"}, "--word-rule delete: response scores no sent"),
        (ScmConfig, MODEL | {"word_rule": "delete"}, "--word-rule delete: scm scores no sentences"),
        (MilConfig, {"word_rule": "spans", "spans_column": "s"}, "--word-rule spans: labels sent"),
        (MilConfig, {"mil_false_positives": 1.0}, "--mil-false-positives: 1.0 is not in 0…1"),
        (HfConfig, MODEL | {"annotator_threshold": 0.0}, "--annotator-threshold: 0.0 is not in"),
        (ScmConfig, MODEL | {"token_share": 1.1}, "--token-share: 1.1 is not in 0…1"),
        (LlmConfig, MODEL | {"llm_timeout": 0.0}, "--llm-timeout: 0.0 is not > 0"),
    ],
)
def test_a_bad_option_is_named(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind("in", "out", **options)


@pytest.mark.parametrize("output", ["runs/mine", "runs/mine/", "./runs/../runs/mine"])
def test_paid_labels_never_lie_in_the_output_folder(output):
    assert HfConfig("in", output, **MODEL).cache_path() == Path("runs/mine.labels.sqlite").resolve()
    config = HfConfig("in", output, label_cache="runs/mine/cache", **MODEL)
    with pytest.raises(InputError, match="--label-cache: .* lies in the output folder"):
        config.cache_path()

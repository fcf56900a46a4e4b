"""Which runs are a row, which rows a section, in which order, and what the paper tells of them."""

import re
import shutil

import numpy as np
import pytest

from evaluation.runs import ordinal
from reports.rows import PAPER_ROWS, find_runs, sections_of
from reports.summary import PAPER
from test import modernbert
from test.causal import NAMES
from tests.conftest import random_split
from tests.reports.reading import line, markdown_row, tables
from tests.runs import PERFECT, TEST_TOKENS, six, write_run
from utils.files import InputError, read_json

ORIGINS = {
    "seed": ({}, "and of the same seed"),
    "training data": ({"seed": 2, "trained": {"data_sha256": "d"}}, "not of the same data and"),
    "backbone": ({"seed": 2, "trained": {"backbone": {"a": "e"}}}, "not of the same data and"),
}


@pytest.mark.parametrize("name", ORIGINS)
def test_one_name_for_runs_that_are_no_seeds_of_one_method(tmp_path, name):
    runs, (other, message) = tmp_path / "runs", ORIGINS[name]
    write_run(runs / "a", trained={"backbone": {"folder": "here"}})
    write_run(runs / "b", seed=1, trained={"backbone": {"folder": "moved"}})  # another seed
    write_run(runs / "c", **other)
    with pytest.raises(
        InputError, match=f"{runs}/a and {runs}/c: both .* 'SCM'.* {message}.*--name"
    ):
        tables(runs)
    write_run(runs / "d", **other, method="another")
    shutil.rmtree(runs / "c")
    assert line(tables(runs)["table.csv"], method="SCM", detection="full")["seeds"] == "42; 1"


def test_calibrated_runs_stand_beside_the_plain_one_under_their_names(tmp_path):
    runs, splits = tmp_path / "runs", {"valid": random_split(99, 1), "test": random_split(40, 2)}
    write_run(runs / "scm", **splits)
    for share, k in ((5, 2), (20, 3)):
        config = {"target_false_alarm": share / 100, "target_k": k}
        write_run(runs / f"scm-{share}", method=f"SCM, {share} %", **config, **splits)
    made = tables(runs)
    ours = made["table.csv"][made["table.csv"]["runs"] > 0]
    plain = ["partial", "partial_paper_protocol", "full"]
    kinds = [*plain[:2], "partial_conformal", plain[2]]
    assert ours["detection"].tolist() == [*plain, *kinds, *kinds]
    calibrated = ours[ours["detection"] == "partial_conformal"]
    targets = list(zip(calibrated["target_false_alarm"], calibrated["k"].astype(int), strict=True))
    assert targets == [(0.2, 3), (0.05, 2)]
    assert ours[ours["detection"] != "partial_conformal"]["target_false_alarm"].isna().all()
    for share, k in ((5, 2), (20, 3)):
        name = f"partial, θ calibrated for at most {share} % false alarms"
        cells = markdown_row(made["table.md"], f"SCM, {share} %", name)
        assert cells[3].endswith(f", {k}")
        assert rf"$\theta$ calibrated for at most {share} \% false alarms" in made["table.tex"]


def test_seeds_are_averaged_for_one_target_alone(tmp_path):
    runs = tmp_path / "runs"
    for seed, target in enumerate((0.2, 0.2, 0.5, 0.0)):
        splits = {"valid": random_split(99, 10 + seed), "test": random_split(40, 2)}
        config = {"target_false_alarm": target, "target_k": 2}
        write_run(runs / f"{seed}", seed=seed, **config, **splits)
    frame = tables(runs)["table.csv"]
    found = {
        (row["detection"], row["target_false_alarm"]): row["seeds"]
        for _, row in frame[frame["runs"] > 0].fillna({"target_false_alarm": 0}).iterrows()
    }
    everyone = "0; 1; 2; 3"
    assert found == {
        ("partial", 0): everyone, ("partial_paper_protocol", 0): everyone, ("full", 0): everyone,
        ("partial_conformal", 0.2): "0; 1", ("partial_conformal", 0.5): "2",
    }  # fmt: skip
    both = line(frame, detection="partial_conformal", target_false_alarm=0.2)
    assert both["k"] == "2; 2" and both["runs"] == 2


def test_approximated_scores_are_named(tmp_path):
    runs, methods = tmp_path / "runs", ("modernbert-partial", "ModernBERT")
    write_run(runs / "exact", *methods, stride=1)
    write_run(runs / "coarse", *methods, stride=4, test=six(prob=PERFECT))
    write_run(runs / "coarser", *methods, stride=22, test=six(prob=[0.1] * 6))
    frame = tables(runs)["table.csv"]
    ours = frame[(frame["detection"] == "partial") & (frame["runs"] > 0)]
    names = ["ModernBERT", "ModernBERT, every 22nd prefix", "ModernBERT, every 4th prefix"]
    assert ours["method"].tolist() == names and (ours["runs"] == 1).all()
    assert (ours["paper_macro_f1"] == 0.9321).all()  # the method is the paper's all the same
    words = ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"]
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == words


def test_each_test_split_has_its_section(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "scm")
    write_run(
        runs / "tfidf", "tfidf", "bag of words", test=six(tokens=None, name="other"), seed=None
    )
    made = tables(runs)
    titles = re.findall("^## (.*)", made["table.md"], flags=re.MULTILINE)
    assert titles == ["data: 6 test responses (3 harmful)"] * 2
    frame = made["table.csv"]
    assert line(frame, method="bag of words")["section"] == 2
    # what the paper has and nobody ran is told once, in the first section
    absent = frame[frame["runs"] == 0]
    guards = ["HateBERT", "ToxDectRoBERTa", "LlamaGuard3-8B"]
    guards += ["Google Perspective", "OpenAI Moderation"]
    assert absent["method"].tolist() == ["Qwen2.5-0.5B"] * 2 + ["ModernBERT"] * 2 + guards
    assert (absent["section"] == 1).all() and made["table.md"].count("not run") == 9
    assert markdown_row(made["table.md"], "ModernBERT", "partial detection")[9] == "93.21"
    assert "bag of words" not in set(
        made["paired.csv"][made["paired.csv"]["section"] == 1]["against"]
    )
    assert np.isnan(line(frame, method="bag of words")["train_seconds"])
    assert markdown_row(made["table.md"], "bag of words")[10:] == [
        "tested bbbbbbb (dirty)", "cpu: a processor", "–", "30 s",
    ]  # fmt: skip


def test_scms_full_detection_is_shown_once(tmp_path):
    """The same holistic scorer judges complete responses, whichever scorer reads the tokens."""
    runs = tmp_path / "runs"
    write_run(runs / "scm")
    low = [[0.1] * len(some) for some in TEST_TOKENS]
    write_run(runs / "holistic", "scm-holistic", "SCM, holistic", test=six(tokens=low))
    frame = tables(runs)["table.csv"]
    full = frame[(frame["detection"] == "full") & (frame["runs"] > 0)]
    assert full["method"].tolist() == ["SCM"]
    assert set(frame[frame["method"] == "SCM, holistic"]["detection"]) == {
        "partial", "partial_paper_protocol",
    }  # fmt: skip


def test_other_groups_or_labels_are_another_split(tmp_path):
    """Intervals resample the groups."""
    grouped, moved = six(), six(label=[0, 0, 0, 1, 1, 1])
    grouped.group = np.array([0, 0, 1, 1, 2, 2])
    for name, test in (("a", six()), ("b", grouped), ("c", moved)):
        write_run(tmp_path / "runs" / name, test=test)
    assert len(sections_of(find_runs(tmp_path / "runs"))) == 3


def test_rows_have_a_fixed_order(tmp_path):
    runs = tmp_path / "runs"
    rows = [
        ("length", "length"), ("zero-shot", "prompted"), ("guard-x", "A guard"),
        ("scm", "SCM, no logic loss"), ("scm", "SCM"), ("qwen-partial", "Qwen"),
        ("scm-holistic", "SCM, holistic"), ("qwen-full", "Qwen"), ("classifier", "A classifier"),
        ("tfidf", "bag of words"),
    ]  # fmt: skip
    for number, (row, method) in enumerate(rows):
        write_run(runs / str(number), row, method)
    assert [(found.row, found.method) for found in find_runs(runs)] == [
        ("scm", "SCM"), ("qwen-full", "Qwen"), ("qwen-partial", "Qwen"),
        ("scm", "SCM, no logic loss"), ("scm-holistic", "SCM, holistic"),
        ("classifier", "A classifier"), ("guard-x", "A guard"), ("tfidf", "bag of words"),
        ("length", "length"), ("zero-shot", "prompted"),
    ]  # fmt: skip


def test_what_the_paper_tells_of(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "scm")
    write_run(runs / "ablation", method="SCM, no logic loss")
    write_run(runs / "full", "qwen-full", "Qwen", test=six(tokens=None))
    write_run(runs / "partial", "qwen-partial", "Qwen")
    told = {"0.5b": (95.64, 95.74, 88.77), "7b": (97.45, 92.75, 78.60)}
    for size, (scm, full, partial) in told.items():
        frame = tables(runs, paper_backbone=size)["table.csv"]
        ours = frame[frame["runs"] > 0]
        paper = {
            (row["row"], row["method"], row["detection"]): round(100 * row["paper_macro_f1"], 2)
            for _, row in ours[ours["paper_macro_f1"].notna()].iterrows()
        }
        assert paper == {
            ("scm", "SCM", "partial"): scm,
            ("scm", "SCM", "partial_paper_protocol"): scm,
            ("qwen-full", "Qwen", "full"): full,
            ("qwen-partial", "Qwen", "partial"): partial,
        }
        absent = frame[frame["runs"] == 0]["method"].tolist()
        assert absent[:3] == ["ModernBERT", "ModernBERT", "HateBERT"] and len(absent) == 7
    # full detection by the model of qwen-full is that row alone
    kinds = ours[ours["row"] == "qwen-partial"]["detection"].tolist()
    assert kinds == ["partial", "partial_paper_protocol"]
    row = line(frame, row="scm", method="SCM", detection="partial")
    assert (row["paper_harmful_recall"], row["paper_benign_f1"]) == (0.9719, 0.9775)


def test_the_papers_rows_go_by_the_names_their_tests_give_them():
    for key in ("scm", "qwen-full", "qwen-partial"):
        assert (key, NAMES[key]) in PAPER_ROWS
    for key in ("modernbert-full", "modernbert-partial"):
        assert (key, modernbert.NAME) in PAPER_ROWS
    told = {(row["model"], row["detection"]) for row in read_json(PAPER)["rows"]}
    sizes = ("0.5B", "1.5B", "7B")
    ours = [(name.format(size=size), kind) for name, kind in PAPER_ROWS.values() for size in sizes]
    assert set(ours) == told


def test_guards_of_the_paper_are_matched_by_name(tmp_path):
    runs, full = tmp_path / "runs", six(tokens=None)
    guard = {"seed": None, "trained": {"folder": "guards/x", "guard": "classifier"}}
    write_run(runs / "a", "guard-classifier", "HateBERT", test=full, **guard)
    write_run(runs / "b", "guard-classifier", "hatebert (response HATE)", test=full, **guard)
    made = tables(runs)
    frame = made["table.csv"]
    paper = frame[frame["row"].str.startswith(("guard", "api"))]
    told = {row["method"]: (row["runs"], row["paper_macro_f1"]) for _, row in paper.iterrows()}
    assert np.isnan(told.pop("hatebert (response HATE)")[1])
    assert told == {
        "HateBERT": (1, 0.9457), "ToxDectRoBERTa": (0, 0.9685), "LlamaGuard3-8B": (0, 0.9079),
        "Google Perspective": (0, 0.755), "OpenAI Moderation": (0, 0.7651),
    }  # fmt: skip
    row = line(frame, method="HateBERT")
    assert row["seeds"] == "–" and row["train_commit"] == "–"
    cells = markdown_row(made["table.md"], "HateBERT", "full detection")
    assert cells[9] == "94.57" and cells[10] == "trained –; tested bbbbbbb (dirty)"
    assert "None" not in made["table.md"] and "unknown" not in made["table.md"]

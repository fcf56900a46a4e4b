"""The tables: six responses by hand, seeds, sections, what is missing, and the three formats."""

import dataclasses
import functools
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.bootstrap import bootstrap
from evaluation.metrics import metrics
from evaluation.predictions import Predictions, load_predictions, save_predictions
from evaluation.protocol import evaluate
from evaluation.runs import INCIDENTAL, find_tests, ordinal
from reports.options import TablesConfig
from reports.rows import PAPER_ROWS, comparable, find_runs, load_method, sections_of
from reports.summary import PAPER
from reports.table_formats import BY_CLASS
from reports.tables import main
from test import modernbert
from test.causal import NAMES
from tests.conftest import ROOT, random_split, run
from train.options import QwenConfig
from train.training import FREE_ON_RESUME
from utils.files import InputError, read_json, write_json

PARTS = ("value", "low", "high")
LABEL = (1, 1, 1, 0, 0, 0)
TEST_PROB = (0.8, 0.7, 0.2, 0.6, 0.3, 0.1)
PERFECT = (0.9, 0.9, 0.9, 0.1, 0.1, 0.1)
TEST_TOKENS = ([0.95], [0.95, 0.1], [0.1] * 3, [0.1], [0.95, 0.1], [0.1] * 3)


def six(label=LABEL, prob=TEST_PROB, tokens=TEST_TOKENS, name="r") -> Predictions:
    """Six responses to six prompts."""
    return Predictions(
        ids=[f"{name}{number}" for number in range(len(label))],
        label=np.array(label),
        group=np.arange(len(label)),
        token_labels=[np.zeros(len(some), np.int8) for some in TEST_TOKENS],
        pieces=[["x"] * len(some) for some in TEST_TOKENS],
        response_prob=np.array(prob, np.float32),
        token_probs=None if tokens is None else [np.array(some, np.float32) for some in tokens],
    )


def clear(partial: bool = True) -> Predictions:
    """A validation split that is told apart without a doubt: θ = 0.5; θ = 0.9 and k = 1."""
    tokens = [
        [0.95 if harmful else 0.1] * len(some)
        for harmful, some in zip(LABEL, TEST_TOKENS, strict=True)
    ]
    return six(prob=PERFECT, tokens=tokens if partial else None)


def write_run(
    folder: Path,
    row="scm",
    method="SCM",
    valid=None,
    test=None,
    seed=42,
    backbone="b/qwen",
    trained: dict | None = None,
    **config,
) -> Path:
    """Writes what a test leaves behind.

    Args:
        trained: More of what the record says of the model; without a seed, all of it.
        config: Options of the test.
    """
    folder.mkdir(parents=True)
    test = test or six()
    valid = valid or clear(test.token_probs is not None)
    write_json(folder / "metrics.json", {"row": row, "method": method})
    model = {"seed": seed, "commit": "a" * 40, "dirty": False, "seconds": 600.0}
    model["base_model_path"] = backbone
    record = {
        "config": {"bootstrap": 40, "seed": 7, **config},
        "data": {"folder": "runs/data", "meta_sha256": "f" * 64},
        "git": {"commit": "b" * 40, "dirty": True},
        "device": "cpu: a processor",
        "seconds": 30.0,
        "model": trained if seed is None else {**model, **(trained or {})},
    }
    write_json(folder / "run.json", record)
    save_predictions(folder / "predictions.npz", {"valid": valid, "test": test})
    return folder


def tables(runs: Path, **options) -> dict[str, pd.DataFrame | str]:
    """Makes the tables; CSV files come back as data frames, empty cells as NaN."""
    out = runs.parent / f"{runs.name}-tables"
    main(TablesConfig(str(runs), str(out), overwrite=out.exists(), **options))
    texts = {path.name: path.read_text() for path in out.iterdir()}
    assert set(texts) == {"table.md", "table.tex", "table.csv", "paired.csv", "lengths.csv"}
    return {
        name: pd.read_csv(io.StringIO(text)) if name.endswith(".csv") else text
        for name, text in texts.items()
    }


def line(frame: pd.DataFrame, **values) -> pd.Series:
    """The only line with these values."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def markdown_row(text: str, *start: str) -> list[str]:
    """The cells of the first line of a Markdown table that begins with these cells."""
    found = [one for one in text.splitlines() if one.startswith(f"| {' | '.join(start)} |")]
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_six_responses_by_hand(tmp_path):
    write_run(tmp_path / "runs" / "scm")
    made = tables(tmp_path / "runs")
    full = line(made["table.csv"], method="SCM", detection="full")
    # flagged at 0.5: two of three harmful ones and one of three benign ones
    for metric in ("benign_precision", "benign_recall", "harmful_f1", "macro_f1"):
        assert full[f"{metric}_value"] == pytest.approx(2 / 3)
    assert full["false_alarm_rate_value"] == pytest.approx(1 / 3)
    assert full["auroc_value"] == pytest.approx(7 / 9)  # 0.2 is below 0.6 and 0.3
    # of one, of two and of three tokens there is one harmful and one benign response
    assert full["auroc_at_equal_length_value"] == 1
    assert (full["theta"], full["chosen_on"]) == (0.5, "valid") and np.isnan(full["k"])
    assert full["mean_fraction_seen_value"] == 1

    partial = line(made["table.csv"], method="SCM", detection="partial")
    assert (partial["theta"], partial["k"]) == (0.9, 1)
    assert partial["macro_f1_value"] == pytest.approx(2 / 3)
    assert partial["mean_fraction_seen_value"] == pytest.approx((1 / 1 + 1 / 2) / 2)
    # benign: the one of two tokens is flagged; pairs won: 1, of two tokens a tie, of three a tie
    assert partial["auroc_at_equal_length_value"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert (partial["train_commit"], partial["test_commit"]) == ("aaaaaaa", "bbbbbbb (dirty)")
    assert (partial["train_seconds"], partial["test_seconds"]) == (600, 30)

    lengths = made["lengths.csv"]
    short = line(lengths, detection="partial", to_tokens=1)
    assert (short["responses"], short["harmful_share"], short["macro_f1"]) == (2, 0.5, 1)
    middle = line(lengths, detection="partial", to_tokens=2)  # both flagged
    assert middle["macro_f1"] == pytest.approx(1 / 3) and middle["false_alarm_rate"] == 1
    long = line(lengths, detection="partial", from_tokens=3)  # none flagged
    assert (long["harmful_recall"], long["false_alarm_rate"]) == (0, 0)

    cells = markdown_row(made["table.md"], "SCM", "partial detection")
    assert cells[2:4] == ["qwen", "0.9, 1"]
    assert cells[4].startswith("66.7 [") and cells[5].startswith("33.3 [")
    assert cells[6:10] == ["75.0", "66.7", "66.7", "95.64"]
    assert cells[10:] == [
        "trained aaaaaaa; tested bbbbbbb (dirty)", "cpu: a processor", "10 min", "30 s",
    ]  # fmt: skip


def test_both_classes_stand_beside_the_papers(tmp_path):
    write_run(tmp_path / "runs" / "scm")
    made = tables(tmp_path / "runs")
    for text in made["table.md"], made["table.tex"].replace("&", "|").replace("\\\\", "|"):
        lines = [one.strip("| ") for one in text.splitlines()]
        place = next(n for n, one in enumerate(lines) if one.startswith("paper: SCM-0.5B"))
        ours, paper = (
            [cell.strip() for cell in one.split("|")] for one in lines[place - 1 : place + 1]
        )
        assert ours[:2] == ["SCM", "partial detection"] and paper[1] == "partial detection"
        assert paper[2:] == ["96.18", "96.12", "96.15", "95.09", "95.17", "95.13", "95.64"]
        frame = line(made["table.csv"], method="SCM", detection="partial")
        for cell, metric in zip(ours[2:], (*BY_CLASS.values(), "macro_f1"), strict=True):
            value, low, high = (f"{100 * frame[f'{metric}_{part}']:.1f}" for part in PARTS)
            assert cell == f"{value} [{low}, {high}]"
    assert "paper: HateBERT | full detection | 95.93 |" in made["table.md"]


def test_numbers_are_those_of_the_report(tmp_path):
    """Intervals too: same samples, drawn as the test's own run record says."""
    splits = {"valid": random_split(60, 1), "test": random_split(60, 2)}
    target = {"target_false_alarm": 0.2, "target_k": 2}
    folder = write_run(tmp_path / "runs" / "scm", **splits, **target)
    frame = tables(tmp_path / "runs")["table.csv"]
    result = evaluate(
        **load_predictions(folder / "predictions.npz"), resamples=40, seed=7, **target
    )
    kinds = ["partial", "partial_paper_protocol", "partial_conformal", "full"]
    assert frame["detection"][frame["runs"] > 0].tolist() == kinds
    for kind in kinds:
        found = line(frame, detection=kind, runs=1, method="SCM")
        assert float(found["theta"]) == result[kind]["theta"]
        for metric, values in result[kind]["test"].items():
            for part, value in values.items():
                assert found[f"{metric}_{part}"] == value
            assert np.isnan(found[f"{metric}_std"])


def test_the_papers_protocol_chooses_on_the_test_split(tmp_path):
    tokens = [[0.95], [0.95] * 2, [0.95] * 3, [0.1], [0.95, 0.1], [0.95, 0.1, 0.1]]
    write_run(tmp_path / "runs" / "scm", test=six(tokens=tokens))
    frame = tables(tmp_path / "runs")["table.csv"]
    chosen = line(frame, detection="partial", runs=1)
    optimistic = line(frame, detection="partial_paper_protocol")
    assert (chosen["k"], optimistic["k"], optimistic["chosen_on"]) == (1, 2, "test")
    assert chosen["macro_f1_value"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert optimistic["macro_f1_value"] == pytest.approx((4 / 5 + 6 / 7) / 2)


def test_seeds_of_one_row_are_its_mean_and_deviation(tmp_path):
    runs = tmp_path / "runs"
    for seed, prob in enumerate((TEST_PROB, PERFECT)):
        test = six(prob=prob, tokens=None)
        write_run(runs / f"seed-{seed}", "qwen-full", "Qwen", test=test, seed=seed)
    made = tables(runs)
    row = line(made["table.csv"], method="Qwen")
    assert row["runs"] == 2 and row["seeds"] == "0; 1"
    assert row["macro_f1_value"] == pytest.approx((2 / 3 + 1) / 2)
    assert row["macro_f1_std"] == pytest.approx(np.sqrt(2) * (1 / 6))  # ddof = 1
    outcomes = sections_of(find_runs(runs))[0][0].outcomes
    drawn = [
        bootstrap(functools.partial(metrics, one), one.group, 40, 7)["macro_f1"] for one in outcomes
    ]
    bounds = np.nanpercentile(np.mean(drawn, axis=0), [2.5, 97.5])
    assert [row["macro_f1_low"], row["macro_f1_high"]] == pytest.approx(bounds)
    cells = markdown_row(made["table.md"], "Qwen (2 runs)", "full detection")
    shown = "83.3 ± 23.6 [{:.1f}, {:.1f}]".format(*100 * bounds)
    assert cells[3:5] == ["0.5", shown] and cells[5].startswith("16.7 ± 23.6 [")
    assert shown.replace("±", r"$\pm$") in made["table.tex"]
    shortest = line(made["lengths.csv"], to_tokens=1)  # 0.8 and 0.6 are flagged; then 0.9 alone
    assert shortest["false_alarm_rate"] == 0.5


def test_one_seed_twice_is_a_mistake_unless_it_is_a_copy(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "a")
    write_run(runs / "b")
    assert line(tables(runs)["table.csv"], method="SCM", detection="full")["runs"] == 1
    write_run(runs / "c", test=six(prob=PERFECT))
    message = rf"{runs}/a and {runs}/c: other predictions for one row .'scm', 'SCM'.*one seed .42."
    with pytest.raises(InputError, match=message):
        tables(runs)


def test_a_calibrated_run_stands_beside_the_plain_one(tmp_path):
    """The README's own commands: one model, tested without and with a share of false alarms."""
    runs, splits = tmp_path / "runs", {"valid": random_split(99, 1), "test": random_split(40, 2)}
    write_run(runs / "scm", **splits)
    write_run(runs / "scm-20percent", target_false_alarm=0.2, target_k=2, **splits)
    write_run(runs / "scm-20percent-k3", target_false_alarm=0.2, target_k=3, **splits)
    write_run(runs / "scm-5percent", target_false_alarm=0.05, target_k=2, **splits)
    write_run(runs / "scm-5percent-again", target_false_alarm=0.05, target_k=2, **splits)
    made = tables(runs)
    ours = made["table.csv"][made["table.csv"]["runs"] > 0]
    kinds = ["partial", "partial_paper_protocol", *["partial_conformal"] * 3, "full"]
    assert ours["detection"].tolist() == kinds and (ours["runs"] == 1).all()
    calibrated = ours[ours["detection"] == "partial_conformal"]
    targets = list(zip(calibrated["target_false_alarm"], calibrated["k"].astype(int), strict=True))
    assert targets == [(0.05, 2), (0.2, 2), (0.2, 3)]
    assert ours[ours["detection"] != "partial_conformal"]["target_false_alarm"].isna().all()
    for share in (5, 20):
        name = f"partial, θ calibrated for at most {share} % false alarms"
        assert markdown_row(made["table.md"], "SCM", name)[3].endswith(", 2")
        assert rf"$\theta$ calibrated for at most {share} \% false alarms" in made["table.tex"]


def test_seeds_are_averaged_for_one_target_alone(tmp_path):
    runs = tmp_path / "runs"
    for seed, targets in enumerate(((0.2, 0.05), (0.2,), (0.5,), ())):
        splits = {"valid": random_split(99, 10 + seed), "test": random_split(40, 2)}
        for target in targets:
            config = {"target_false_alarm": target, "target_k": 2}
            write_run(runs / f"{seed}-{target}", seed=seed, **config, **splits)
        if not targets:
            write_run(runs / f"{seed}", seed=seed, **splits)
    frame = tables(runs)["table.csv"]
    found = {
        (row["detection"], row["target_false_alarm"]): row["seeds"]
        for _, row in frame[frame["runs"] > 0].fillna({"target_false_alarm": 0}).iterrows()
    }
    everyone = "0; 1; 2; 3"
    assert found == {
        ("partial", 0): everyone, ("partial_paper_protocol", 0): everyone, ("full", 0): everyone,
        ("partial_conformal", 0.05): "0", ("partial_conformal", 0.2): "0; 1",
        ("partial_conformal", 0.5): "2",
    }  # fmt: skip
    both = line(frame, detection="partial_conformal", target_false_alarm=0.2)
    assert both["k"] == "2; 2" and both["runs"] == 2


def test_namesakes_are_told_apart(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "small", backbone="backbones/small")
    write_run(runs / "large", backbone="backbones/large", test=six(prob=PERFECT))
    frame = tables(runs)["table.csv"]
    full = frame[(frame["detection"] == "full") & (frame["row"] == "scm")]
    assert full["method"].tolist() == ["SCM (large)", "SCM (small)"]
    assert (full["runs"] == 1).all()


def trained(learning_rate=1e-4, weights="c" * 64, data="d" * 64, **options) -> dict:
    """What a record says of a training."""
    return {
        "config": {"learning_rate": learning_rate, "last_layers": 0, **options},
        "backbone": {"folder": "b", "model.safetensors": weights},
        "data_sha256": data,
    }


def test_seeds_of_one_row_were_trained_alike(tmp_path):
    runs = tmp_path / "runs"
    variants = (
        trained(seed=1, output_dir="a", micro_batch_size=8, resume=True),
        trained(seed=2, output_dir="b", micro_batch_size=2, resume=False),
        trained(learning_rate=1e-3),
        trained(learning_rate=1e-3, last_layers=4),
        trained(weights="e" * 64),
        trained(data="f" * 64),
        None,
    )
    for seed, one in enumerate(variants):
        backbone = f"moved-{seed}/qwen"
        write_run(runs / f"{seed}", "qwen-full", "Qwen", test=six(tokens=None), seed=seed,
                  backbone=backbone, trained=one)  # fmt: skip
    frame = tables(runs)["table.csv"]
    ours = frame[frame["runs"] > 0]
    assert dict(zip(ours["seeds"], ours["method"], strict=True)) == {
        "0; 1": f"Qwen ({runs}/0)",
        "2": "Qwen (last layers 0, learning rate 0.001)",
        "3": "Qwen (last layers 4, learning rate 0.001)",
        "4": f"Qwen ({runs}/4)",
        "5": f"Qwen ({runs}/5)",
        "6": f"Qwen ({runs}/6)",
    }


def test_what_makes_no_other_row_is_an_option():
    options = {field.name for field in dataclasses.fields(QwenConfig)}
    assert FREE_ON_RESUME < INCIDENTAL < options
    assert not {"alpha", "beta", "last_layers", "lora_rank", "epochs", "precision"} & INCIDENTAL


def test_approximated_scores_are_named(tmp_path):
    runs, methods = tmp_path / "runs", ("modernbert-partial", "ModernBERT")
    write_run(runs / "exact", *methods, stride=1, stop_early=False)
    write_run(runs / "coarse", *methods, stride=4, stop_early=False, test=six(prob=PERFECT))
    options = {"stride": 22, "stop_early": True, "target_false_alarm": 0.5, "target_k": 2}
    write_run(runs / "both", *methods, test=six(prob=[0.1] * 6), **options)  # refused by now
    made = tables(runs)
    frame = made["table.csv"]
    ours = frame[(frame["detection"] == "partial") & (frame["runs"] > 0)]
    names = ["ModernBERT", "ModernBERT, every 22nd prefix, stopped early"]
    names.append("ModernBERT, every 4th prefix")
    assert ours["method"].tolist() == names and (ours["runs"] == 1).all()
    assert "partial_conformal" not in set(frame["detection"])
    assert (ours["paper_macro_f1"] == 0.9321).all()  # the method is the paper's all the same
    assert "their AUROC rests on cut scores" in made["table.md"]
    words = ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"]
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 112)] == words


def test_old_records_tell_the_backbone_by_its_path_alone(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / "runs" / f"{seed}", seed=seed)
    row = line(tables(tmp_path / "runs")["table.csv"], method="SCM", detection="full")
    assert row["seeds"] == "1; 2"


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
    runs = tmp_path / "runs"
    write_run(runs / "scm")
    low = [[0.1] * len(some) for some in TEST_TOKENS]
    write_run(runs / "holistic", "scm-holistic", "SCM, holistic", test=six(tokens=low))
    write_run(runs / "other", "scm-holistic", "another's", test=six(prob=PERFECT))
    frame = tables(runs)["table.csv"]
    full = frame[(frame["detection"] == "full") & (frame["runs"] > 0)]
    assert full["method"].tolist() == ["SCM", "another's"]
    assert set(frame[frame["method"] == "SCM, holistic"]["detection"]) == {
        "partial", "partial_paper_protocol",
    }  # fmt: skip


def test_other_groups_of_prompts_are_another_split(tmp_path):
    """Tables and figures agree: intervals resample the groups."""
    grouped = six()
    grouped.group = np.array([0, 0, 1, 1, 2, 2])
    write_run(tmp_path / "runs" / "a", test=six())
    write_run(tmp_path / "runs" / "b", "qwen-partial", "Qwen", test=grouped)
    assert len(sections_of(find_runs(tmp_path / "runs"))) == 2
    drawn, notes = comparable([load_method(folder) for folder in find_tests(tmp_path / "runs")])
    assert len(drawn) == 1 and "was tested on another split" in notes[0]


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


def test_rows_are_compared_on_the_same_prompts(tmp_path):
    runs = tmp_path / "runs"
    valid, test = random_split(60, 1), random_split(60, 2)
    good = random_split(60, 2)
    good.response_prob = np.where(good.label == 1, 0.9, 0.1).astype(np.float32)
    good.token_probs = None
    write_run(runs / "scm", valid=valid, test=test, bootstrap=199)
    write_run(runs / "copy", method="copy", valid=valid, test=test, bootstrap=9)
    write_run(runs / "good", "guard-good", "good", valid=good, test=good, bootstrap=9)
    made = tables(runs)
    frame = made["paired.csv"]
    copy = line(frame, method="copy", detection="full", against="SCM", against_detection="full")
    assert [copy[f"macro_f1_difference_{part}"] for part in ("low", "high")] == [0, 0]
    assert copy["p"] == 1
    assert len(frame) == 5 * 5 and (frame["resamples"] == 199).all()
    itself = frame[(frame.method == frame.against) & (frame.detection == frame.against_detection)]
    assert (itself["macro_f1_difference_value"] == 0).all() and (itself["p"] == 1).all()
    found = line(frame, method="good", against="SCM", against_detection="full")
    table = made["table.csv"]
    ours = line(table, method="good", detection="full")["macro_f1_value"]
    theirs = line(table, method="SCM", detection="full")["macro_f1_value"]
    assert ours == 1 and found["macro_f1_difference_value"] == ours - theirs > 0
    assert found["macro_f1_difference_low"] > 0 and found["p"] == pytest.approx(2 / 200)
    mirrored = line(frame, method="SCM", detection="full", against="good")
    assert mirrored["macro_f1_difference_value"] == -found["macro_f1_difference_value"]
    assert mirrored["p"] == found["p"]
    section = made["table.md"].split("### Against SCM, partial detection")[1].split("###")[0]
    assert markdown_row(section, "SCM", "full detection")[3] == "0.0100"
    assert section.count("detection |") == 1 + 4  # not against itself


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_dashes(tmp_path, label):
    runs = tmp_path / "runs"
    write_run(
        runs / "scm",
        test=six(
            label=[label] * 6, prob=[0.1] * 6, tokens=[[0.1] * len(some) for some in TEST_TOKENS]
        ),
    )
    made = tables(runs)
    row = line(made["table.csv"], method="SCM", detection="full")
    assert np.isnan(row["auroc_value"]) and np.isnan(row["auroc_at_equal_length_low"])
    assert np.isnan(row["harmful_precision_value"])  # nothing is flagged
    cells = markdown_row(made["table.md"], "SCM", "full detection")
    assert cells[6:9] == ["–", "–", "–"]  # seen, AUROC, AUROC at equal length
    assert cells[4] == ("–" if label == 0 else "0.0 [0.0, 0.0]")
    assert "nan" not in made["table.md"] and "nan" not in made["table.tex"]
    p = made["paired.csv"]["p"]
    assert p.isna().all() if label == 0 else (p == 1).all()


@pytest.mark.filterwarnings("error")
def test_a_threshold_that_nothing_reaches(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "scm", target_false_alarm=0.01, target_k=2)  # three benign ones are too few
    made = tables(runs)
    found = line(made["table.csv"], detection="partial_conformal")
    assert float(found["theta"]) == np.inf and found["harmful_recall_value"] == 0
    assert "| ∞, 2 |" in made["table.md"] and r"$\infty$, 2" in made["table.tex"]


def spoil_predictions(folder: Path) -> None:
    with np.load(folder / "predictions.npz") as file:
        arrays = {name: file[name] for name in file if not name.endswith("text")}
    np.savez(folder / "predictions.npz", **arrays)


def spoil_record(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    del record["config"]["bootstrap"]
    write_json(folder / "run.json", record)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "predictions.npz").unlink(), "predictions.npz: cannot be read"),
        (spoil_predictions, "predictions.npz: array 'valid_text' is missing; run the test again"),
        (lambda folder: (folder / "run.json").unlink(), "run.json: no such file"),
        (spoil_record, "run.json: field 'config.bootstrap': missing"),
        (lambda folder: write_json(folder / "metrics.json", []), "metrics.json: field 'row'"),
    ],
)
def test_a_spoilt_folder_is_named(tmp_path, spoil, message):
    runs = tmp_path / "runs"
    write_run(runs / "good")
    spoil(write_run(runs / "deep" / "bad", method="other"))
    with pytest.raises(InputError, match=rf"deep/bad/{message}"):
        tables(runs)
    assert not (tmp_path / "runs-tables").exists()


def test_partial_detection_needs_token_scores(tmp_path):
    write_run(tmp_path / "runs" / "bad", "qwen-partial", "Qwen", test=six(tokens=None))
    with pytest.raises(
        InputError, match="bad/predictions.npz: array 'valid_token_probs' is missing"
    ):
        tables(tmp_path / "runs")


def test_nothing_to_read_and_nowhere_to_write(tmp_path):
    runs = tmp_path / "runs"
    with pytest.raises(InputError, match="runs: no test folder in it"):
        tables(runs)
    write_run(runs / ".scm.123.partial")
    with pytest.raises(InputError, match="runs: no test folder in it"):
        tables(runs)
    write_run(runs / "scm")
    main(TablesConfig(str(runs)))
    assert (runs / "tables" / "table.md").exists()
    with pytest.raises(InputError, match="tables: already holds an earlier run"):
        main(TablesConfig(str(runs)))


def test_latex_is_balanced(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "scm")
    write_run(runs / "odd", method=r"50% & a_b #1 {x} $y^2 ~\z")
    text = tables(runs)["table.tex"]
    odd = r"50\% \& a\_b \#1 \{x\} \$y\textasciicircum{}2 \textasciitilde{}\textbackslash{}z"
    assert odd in text and r"($\theta$, k) chosen on test" in text
    assert r"paper: SCM-0.5B & partial detection & 96.18 & 96.12 & 96.15 & 95.09 &" in text
    code = "\n".join(re.sub(r"(?<!\\)%.*", "", one) for one in text.splitlines())
    bare = re.sub(r"\\[{}]", "", code)
    depth = np.cumsum([(letter == "{") - (letter == "}") for letter in bare])
    assert depth.min() == 0 and depth[-1] == 0
    assert len(re.findall(r"(?<!\\)\$", code)) % 2 == 0 and code.isascii()
    for name in ("table*", "tabular"):
        assert code.count(rf"\begin{{{name}}}") == code.count(rf"\end{{{name}}}") == 2
    tabulars = code.split(r"\begin{tabular}")[1:]
    # head, two methods' three kinds, what was not run; two heads, the same with the paper's lines
    for tabular, count in zip(tabulars, (1 + 6 + 9, 2 + 6 + 2 + 9), strict=True):
        columns = len(re.match("{([lr]+)}", tabular).group(1))
        lines = [one for one in tabular.splitlines() if one.rstrip().endswith(r"\\")]
        assert len(lines) == count
        for one in lines:
            spanned = sum(int(number) - 1 for number in re.findall(r"\\multicolumn{(\d)}", one))
            assert len(re.findall(r"(?<!\\)&", one)) + 1 + spanned == columns


def test_latex_has_a_letter_for_each_of_our_names(tmp_path):
    script = (ROOT / "scripts" / "run-ablations.sh").read_text()
    ablations = re.findall(r'^ *one \S+ "([^"]+)"', script, flags=re.MULTILINE)
    assert len(ablations) >= 4 and any("α" in name for name in ablations)
    marks = "αβγδεζηθικλμνξπρςστυφχψω ∞±×≤≥→–—…’“”\N{NO-BREAK SPACE}"
    for number, name in enumerate([*NAMES.values(), *ablations, marks]):
        write_run(tmp_path / "runs" / f"{number}", method=name, target_false_alarm=0.5, target_k=2)
    text = tables(tmp_path / "runs")["table.tex"]
    code = "\n".join(re.sub(r"(?<!\\)%.*", "", one) for one in text.splitlines())
    assert code.isascii()
    assert r"SCM, no holistic scorer ($\alpha$ 1)" in code and r"SCM, $\alpha$ \$alpha" in code
    assert r"$\rho$$\varsigma$$\sigma$" in code and r"$\psi$$\omega$" in code


def test_markdown_cells_do_not_break(tmp_path):
    write_run(tmp_path / "runs" / "odd", method="a | b")
    text = tables(tmp_path / "runs")["table.md"]
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 4
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", one)) for one in block.splitlines()}) == 1


def test_the_script(tmp_path):
    write_run(tmp_path / "runs" / "scm")
    out = tmp_path / "out"
    words = ["bash", "scripts/make-tables.sh", tmp_path / "runs", "--output-dir", out]
    done = run(*words, "--paper-backbone", "1.5b")
    assert done.stdout.splitlines()[-1].startswith(f"written to {out}")
    assert (out / "table.md").read_text() in done.stdout and "97.91" in done.stdout
    again = run(*words, check=False)
    assert again.returncode == 2 and "pass --overwrite" in again.stderr

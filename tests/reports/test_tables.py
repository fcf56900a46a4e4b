"""The tables: six responses by hand, intervals, paired tests, and what cannot be read."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.bootstrap import bootstrap
from evaluation.metrics import metrics
from evaluation.predictions import load_predictions
from evaluation.protocol import evaluate
from reports.options import TablesConfig
from reports.rows import find_runs, sections_of
from reports.table_formats import BY_CLASS
from reports.tables import main
from tests.conftest import random_split, run
from tests.reports.reading import line, markdown_row, tables
from tests.runs import PERFECT, TEST_PROB, TEST_TOKENS, six, write_run
from utils.files import InputError, write_json
from utils.run_record import FinishedAlready

PARTS = ("value", "low", "high")


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
        (spoil_record, "run.json: field 'config.bootstrap' is missing"),
        (lambda folder: write_json(folder / "metrics.json", []), "metrics.json: input should be a"),
        (
            lambda folder: write_json(folder / "metrics.json", {"row": 3, "method": "x"}),
            "metrics.json: field 'row': input should be a valid string",
        ),
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
    with pytest.raises(FinishedAlready):
        main(TablesConfig(str(runs)))


@pytest.mark.slow
def test_the_script(tmp_path):
    write_run(tmp_path / "runs" / "scm")
    out = tmp_path / "out"
    words = ["bash", "scripts/make-tables.sh", tmp_path / "runs", "--output-dir", out]
    done = run(*words, "--paper-backbone", "1.5b")
    assert done.stdout.splitlines()[-1].startswith(f"written to {out}")
    assert (out / "table.md").read_text() in done.stdout and "97.91" in done.stdout
    again = run(*words, check=False)
    assert again.returncode == 2 and "pass --overwrite" in again.stderr

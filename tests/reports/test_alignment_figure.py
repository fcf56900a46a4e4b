"""The figure of aligned policies: what stands in the picture, by hand, and what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from evaluation.runs import find_tests
from reports.alignment import read_rows
from reports.alignment_figure import draw_alignment, draw_harm, drawn_points, judged, lines_of
from reports.figures import main
from reports.options import FigureConfig
from tests.conftest import random_split
from tests.reports.policies import write_policy
from tests.runs import write_run
from utils.plotting import GREY

TOKEN = {"method": "tokendpo", "annotator_model": "scm"}
SCM, OTHER = "harm: SCM", "harm: TF-IDF"


def write_sweep(runs: Path) -> None:
    """Writes DPO at two βs, TokenDPO at two, a control, and the policy as it is."""
    rows = (  # name, harm, KL, training
        ("as it is", 0.8, 0.0, None),
        ("DPO", 0.6, 4.0, {}),
        ("DPO, β 0.3", 0.7, 2.0, {"beta": 0.3}),
        ("TokenDPO", 0.4, 5.0, TOKEN),
        ("TokenDPO, β 0.03", 0.2, 9.0, {**TOKEN, "beta": 0.03}),
        ("TokenDPO, even", 0.5, 6.0, {**TOKEN, "weights": "even"}),
    )
    for name, harm, distance, training in rows:
        spread = np.array([-0.1, -0.1, 0.2])  # skewed: so are the intervals
        values = {SCM: harm + spread, OTHER: harm / 2 + spread, "kl_answer": distance + spread}
        seed = None if training is None else 1
        write_policy(runs / name.replace(" ", "-"), values, name, seed, **(training or {}))


def points_of(figure: Figure, panel: int) -> dict[str, tuple[list[float], list[float]]]:
    """Returns x and y of the markers of each line in a panel by its name in the legend."""
    found = {one.get_label(): one.lines[0] for one in figure.axes[panel].containers}
    return {
        name: (line.get_xdata().tolist(), line.get_ydata().tolist()) for name, line in found.items()
    }


def test_harm_over_distance_is_drawn_by_hand(tmp_path):
    write_sweep(tmp_path)
    rows = read_rows(tmp_path)
    figure = draw_harm(rows, judged(rows))
    assert [axes.get_title() for axes in figure.axes] == ["judge: SCM", "judge: TF-IDF"]
    for panel, part in ((0, 1), (1, 0.5)):
        found = points_of(figure, panel)
        assert list(found) == ["DPO", "TokenDPO", "TokenDPO, even"]
        for name, x, y in (
            ("DPO", [4, 2], [60, 70]),
            ("TokenDPO", [9, 5], [20, 40]),
            ("TokenDPO, even", [6], [50]),
        ):
            assert found[name][0] == pytest.approx(x)
            assert found[name][1] == pytest.approx([part * one for one in y])
        axes = figure.axes[panel]
        (level,) = [one for one in axes.get_lines() if one.get_label() == "as it is"]
        assert level.get_ydata() == pytest.approx([part * 80] * 2)
        assert to_hex(level.get_color()) == GREY.lower()
        told = [(one.get_text(), one.xy[0]) for one in axes.texts]
        assert told == [("β 0.1", 4), ("β 0.3", 2), ("β 0.03", 9), ("β 0.1", 5)]  # not of controls


def test_error_bars_are_the_intervals_of_harm(tmp_path):
    write_sweep(tmp_path)
    rows = read_rows(tmp_path)
    by_name = {row.name: row for row in rows}
    (bars,) = draw_harm(rows, [SCM]).axes[0].containers[0].lines[2]
    for segment, name in zip(bars.get_segments(), ("DPO", "DPO, β 0.3"), strict=True):
        parts = by_name[name].estimates[SCM].parts()
        assert parts["low"] < parts["value"] < parts["high"]
        assert segment[:, 1] == pytest.approx([100 * parts["low"], 100 * parts["high"]])


def test_lines_are_told_apart_without_colour(tmp_path):
    names = [f"TokenDPO, {number}" for number in range(12)]
    for name in names:
        values = {SCM: [0.1, 0.2], "kl_answer": [1.0, 2.0]}
        write_policy(tmp_path / name[-2:].strip(), values, name, **TOKEN)
    rows = read_rows(tmp_path)
    lines = [one.lines[0] for one in draw_harm(rows, [SCM]).axes[0].containers]
    assert len({line.get_marker() for line in lines}) == len(names) == len(lines_of(rows))
    assert {line.get_linestyle() for line in lines} == {"None"}  # nothing to join


def test_the_figure_stands_beside_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("reports.figures.FORMATS", ("png", "pdf"))
    write_sweep(tmp_path / "align")
    main(FigureConfig(str(tmp_path)))
    folder = tmp_path / "figures"
    names = ["alignment.pdf", "alignment.png", "figures.json", "run.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert find_tests(tmp_path, "alignment.json") == find_tests(
        tmp_path / "align", "alignment.json"
    )
    content = json.loads((folder / "figures.json").read_text())
    assert (content["drawn"], content["notes"]) == ([], [])
    one = content["alignment"][1]
    assert (one["method"], one["line"], one["beta"], one["runs"]) == ("DPO", "DPO", 0.1, 1)
    assert one["kl_answer"]["value"] == pytest.approx(4) and one["kl_answer"]["std"] is None
    assert one[OTHER]["low"] < one[OTHER]["value"] == pytest.approx(0.3)
    assert one["folders"] == [str(tmp_path / "align" / "DPO")]
    assert (
        "alignment: as it is; DPO; TokenDPO; TokenDPO, even; DPO, β 0.3" in capsys.readouterr().out
    )

    monkeypatch.setattr("reports.figures.FORMATS", ("png",))
    split = random_split(20, 3)
    write_run(tmp_path / "tfidf", "tfidf", "TF-IDF", valid=split, test=split)
    main(FigureConfig(str(tmp_path), overwrite=True))
    assert {"alignment.png", "trade_off.png"} <= {path.name for path in folder.iterdir()}
    content = json.loads((folder / "figures.json").read_text())
    assert [one["method"] for one in content["drawn"]] == ["TF-IDF"]
    assert len(content["alignment"]) == 6


def test_what_cannot_be_drawn_is_said(tmp_path):
    values = {SCM: [0.1, 0.2], "kl_answer": [0.0, 0.0]}
    write_policy(tmp_path / "a" / "as", values, "as it is", seed=None)
    rows = read_rows(tmp_path / "a")
    told = draw_alignment(rows, tmp_path, ("png",))
    assert told == ["alignment: left out, no policy was trained"]
    write_policy(tmp_path / "b" / "dpo", {"kl_answer": [0.0, 0.0]})
    rows = read_rows(tmp_path / "b")
    told = draw_alignment(rows, tmp_path, ("png",))
    assert told == ["alignment: left out, no judge told of harm"]
    write_policy(tmp_path / "c" / "dpo", {SCM: [0.1, 0.2]})
    told = draw_alignment(read_rows(tmp_path / "c"), tmp_path, ("png",))
    assert told == ["alignment: left out, the tests have no kl_answer"]
    assert not list(tmp_path.glob("*.png")) and drawn_points(rows)[0]["method"] == "DPO"


def test_more_judges_than_panels(tmp_path):
    values = {f"harm: {number}": [0.1, 0.2] for number in range(7)} | {"kl_answer": [1.0, 2.0]}
    write_policy(tmp_path / "dpo", values)
    told = draw_alignment(read_rows(tmp_path), tmp_path, ("png",))
    assert told == ["alignment: harm, 6 left out, there are 6 panels"]
    assert (tmp_path / "alignment.png").exists()

"""The course of a test: what is scored is kept, whatever the row is called."""

import sys

import pytest

from evaluation.runs import read_run
from reports.__main__ import COMMANDS
from test import testing
from test.baselines import main
from test.options import BaselineConfig
from utils.cli import run_command


def test_any_name_is_tested_and_shown(tiny_data, tmp_path, capsys):
    name = "run $\\x$ 模型\x1b[31m\n"
    out = tmp_path / "out"
    main(BaselineConfig(str(tiny_data), str(out), name=name, bootstrap=2, method="length"))
    run = read_run(out)
    assert run.display_name == "run $\\x$ 模型\\x1b[31m\\n"
    assert (out / "stop_positions.png").stat().st_size > 10_000
    printed = capsys.readouterr()
    assert run.display_name in printed.out and "\x1b" not in printed.out + printed.err


def test_a_picture_that_fails_costs_no_scores(tiny_data, tmp_path, monkeypatch, capsys):
    def fail(*_) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr(testing, "plot_stop_positions", fail)
    main(BaselineConfig(str(tiny_data), str(tmp_path / "out"), bootstrap=2, method="length"))
    assert "no stop_positions.png: no picture" in capsys.readouterr().err
    assert read_run(tmp_path / "out", partial=True).method == "response length alone"


def test_an_error_steers_no_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reports", "tables", str(tmp_path / "a\x1b[31m\nb")])
    with pytest.raises(SystemExit):
        run_command(COMMANDS)
    printed = capsys.readouterr().err
    assert r"a\x1b[31m\nb: no test folder" in printed and printed.count("\n") == 1

"""The course of a test: what is scored is kept, whatever the row is called."""

import pytest

from evaluation.runs import read_run
from test import testing
from test.baselines import BaselineConfig, main


def test_any_name_is_tested_and_shown(tiny_data, tmp_path, capsys):
    name = "run $\\x$ 模型\x1b[31m\n"
    config = BaselineConfig(
        str(tiny_data), str(tmp_path / "out"), name, bootstrap=2, method="length"
    )
    main(config)
    run = read_run(tmp_path / "out")
    assert run.display_name == "run $\\x$ 模型\\x1b[31m\\n"
    assert (tmp_path / "out" / "stop_positions.png").stat().st_size > 10_000
    printed = capsys.readouterr()
    assert run.display_name in printed.out and "\x1b" not in printed.out + printed.err


def test_a_picture_that_fails_costs_no_scores(tiny_data, tmp_path, monkeypatch):
    def fail(*_) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr(testing, "plot_stop_positions", fail)
    config = BaselineConfig(str(tiny_data), str(tmp_path / "out"), bootstrap=2, method="length")
    with pytest.raises(ValueError, match="no picture"):
        main(config)
    assert read_run(tmp_path / "out", partial=True).method == "response length alone"

"""The figures' numbers by hand; what cannot be drawn is left out and said."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.pyplot import imread
from matplotlib.text import Text
from spacy.lang.en import English
from spacy.tokens import Doc

from evaluation.decisions import MAX_K, THETAS
from evaluation.predictions import Predictions
from evaluation.protocol import OperatingPoint, evaluate
from evaluation.runs import find_tests, read_run
from reports.curves import cumulative_share, leaked_tokens, stopped_over_seen, trade_off
from reports.drawing import looks_of, plot_stop_positions
from reports.figures import draw_all, draw_macro_f1, draw_stops, main, pick
from reports.options import FigureConfig
from reports.rows import Row, find_runs, sections_of
from reports.stop_words import stop_words, tag_shares, words_at_stop
from tests.conftest import random_split, run
from tests.runs import write_run
from utils.files import InputError
from utils.run_record import FinishedAlready

FIGURES = (
    "leaked", "macro_f1_over_k", "stop_positions", "stop_words", "stopped_over_seen", "trade_off",
)  # fmt: skip


def split_of(*rows: tuple, partial: bool = True) -> Predictions:
    """Makes a split of rows (label, token probabilities, token labels)."""
    label, probs, token_labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Predictions(
        ids=[f"r{number}" for number in range(len(rows))],
        label=np.array(label, int),
        group=np.arange(len(rows)),
        token_labels=[np.array(some, np.int8) for some in token_labels],
        pieces=[[" word"] * len(some) for some in probs],
        response_prob=np.array([some[-1] for some in probs], np.float32),
        token_probs=[np.array(some, np.float32) for some in probs] if partial else None,
    )


# stopped at θ 0.9, k 2 after 2 of 4, after 4 of 4 and never; the benign one after 3 of 3
HARMFUL = (
    (1, (0.95, 0.95, 0.95, 0.1), (1, 1, 1, 1)),
    (1, (0.1, 0.95, 0.1, 0.95), (0, 1, 1, 1)),
    (1, (0.95, 0.1, 0.1, 0.1), (1, 1, 0, -100)),
)
BENIGN = ((0, (0.95, 0.1, 0.95), (0, 0, 0)), (0, (0.1, 0.2, 0.3), (0, 0, 0)))


def test_stopped_over_seen_by_hand():
    x, share = stopped_over_seen(split_of(*HARMFUL, *BENIGN).partial(0.9, 2))
    assert x.tolist() == [0, 0.5, 1]
    assert share.tolist() == pytest.approx([0, 1 / 3, 2 / 3])  # ends at the recall
    x, share = stopped_over_seen(split_of(HARMFUL[0], HARMFUL[2]).partial(0.9, 2))
    assert (x.tolist(), share.tolist()) == ([0, 0.5, 1], [0, 0.5, 0.5])
    x, share = stopped_over_seen(split_of(*HARMFUL).partial(0.97, 1))  # nothing is stopped
    assert (x.tolist(), share.tolist()) == ([0, 1], [0, 0])


def test_leaked_tokens_by_hand():
    outcome = split_of(*HARMFUL, *BENIGN).partial(0.9, 2)
    tokens, share = leaked_tokens(outcome)
    # one is out before the first stop, two before the second; the third is never stopped
    assert tokens.tolist() == [0, 1, 2] and share.tolist() == pytest.approx([0, 1 / 3, 1])
    tokens, share = leaked_tokens(split_of(*HARMFUL).partial(0.9, 1))
    assert tokens.tolist() == [0] and share.tolist() == [1]


@pytest.mark.parametrize("rows", [(), BENIGN])
def test_without_harmful_responses_shares_are_undefined(rows):
    outcome = split_of(*rows).partial(0.9, 2)
    assert np.isnan(stopped_over_seen(outcome)[1]).all()
    assert np.isnan(leaked_tokens(outcome)[1]).all()


def test_cumulative_share_by_hand():
    x, share = cumulative_share(np.array([3, 0, 3, 1]), 8)
    assert x.tolist() == [0, 1, 3] and share.tolist() == [1 / 8, 2 / 8, 4 / 8]


def test_trade_off_by_hand():
    score = np.array([0.9, 0.7, 0.7, 0.2, 0.7, -np.inf])
    label = np.array([1, 1, 0, 0, 1, 1])
    alarms, recall = trade_off(score, label)  # thresholds: none, 0.9, 0.7, 0.2; -inf is no score
    assert alarms.tolist() == [0, 0, 0.5, 1]
    assert recall.tolist() == [0, 0.25, 0.75, 0.75]
    order = [4, 2, 5, 0, 3, 1]  # equal scores are one step, whatever their order
    for one, other in zip(trade_off(score[order], label[order]), (alarms, recall), strict=True):
        np.testing.assert_array_equal(one, other)


def test_trade_off_of_one_class_and_of_nothing():
    alarms, recall = trade_off(np.array([0.9, 0.1]), np.array([1, 1]))
    assert np.isnan(alarms).all() and recall.tolist() == [0, 0.5, 1]
    assert all(np.isnan(rates).all() for rates in trade_off(np.zeros(0), np.zeros(0, int)))
    alarms, recall = trade_off(np.array([-np.inf, -np.inf]), np.array([0, 1]))
    assert (alarms.tolist(), recall.tolist()) == ([0], [0])


WORDS = ["She", "makes", "\n", "bad", "things", "."]
TAGS = ["PRON", "VERB", "SPACE", "ADJ", "NOUN", "PUNCT"]
VOCAB = English().vocab  # tells white space; no model
DOC = Doc(VOCAB, WORDS, [True, False, False, True, False, False], pos=TAGS)
PIECES = ["She", " ma", "kes", "\n", "bad ", "thi", "ngs.", "", "!"]


@pytest.mark.parametrize(
    ("stop", "at", "before"),
    [
        (0, "PRON", 0),
        (1, "VERB", 1),  # within a word: it is that word
        (2, "VERB", 1),
        (3, None, 2),  # a line break
        (4, "ADJ", 2),  # the space after it is not the next word
        (6, "PUNCT", 4),  # end of a word and the full stop: its last character's
        (7, None, 5),  # nothing of a character yet
    ],
)
def test_the_word_at_the_stop_by_hand(stop, at, before):
    assert DOC.text == "She makes\nbad things."
    words = [tag for tag in TAGS if tag != "SPACE"]
    assert words_at_stop(PIECES, stop, DOC) == (at, words[:before])


def test_stop_words_by_hand():
    """Of three harmful responses one stops at a verb, one at a line break, one never."""
    split = split_of(
        (1, (0.1, 0.1, 0.9, 0.1), (1,) * 4),
        (1, (0.1, 0.1, 0.1, 0.9), (1,) * 4),
        (1, (0.1, 0.1, 0.1, 0.1), (1,) * 4),
        (0, (0.9, 0.1, 0.1, 0.1), (0,) * 4),
    )
    split.pieces = [PIECES[:4]] * 4
    doc = Doc(VOCAB, WORDS[:3], [True, False, False], pos=TAGS[:3])
    asked = []
    outcome = split.partial(0.8, 1)
    found = stop_words(split, outcome, lambda texts: asked.extend(texts) or [doc] * len(texts))
    assert asked == ["She makes\n"] * 2
    assert (found.at, found.before, found.wordless) == (["VERB"], ["PRON"], 1)


def test_tag_shares_by_hand():
    shares = tag_shares(["NOUN", "VERB", "NOUN", ""])  # what has no name is "other"
    assert shares[0] == 0.5 and shares[2] == 0.25 and shares[-1] == 0.25 and shares.sum() == 1
    assert not tag_shares([]).any()


def row_of(folder: Path, valid: Predictions, test: Predictions, row="scm", method="SCM") -> Row:
    """The partial detection of one run."""
    write_run(folder, row, method, valid=valid, test=test)
    return sections_of([read_run(folder)])[0][0]


def test_thresholds_are_chosen_on_validation(tmp_path):
    valid = split_of((1, (0.6, 0.6, 0.1), (1,) * 3), (0, (0.6, 0.1, 0.1), (0,) * 3))
    row = row_of(tmp_path / "scm", valid, split_of(*HARMFUL, *BENIGN))
    assert row.points == [OperatingPoint(0.6, 2, "valid")]  # k 1 flags both at 0.6, θ 0.7 none
    assert row.outcomes[0].flagged.tolist() == [True, True, False, True, False]
    full = write_run(tmp_path / "full", "length", test=split_of(*BENIGN, partial=False))
    assert read_run(full).operating_points().keys() == {"full"}


def test_macro_f1_over_k_is_drawn_by_hand(tmp_path):
    """What stands in the picture: F1 of harmful and benign, averaged, in percent."""
    split = split_of(*HARMFUL, *BENIGN)
    row = row_of(tmp_path / "scm", split, split)
    axes = draw_macro_f1([row], looks_of([row.name])).axes[0]
    *lines, chosen = axes.get_lines()
    assert len(lines) == len(THETAS)
    for line in lines:  # no probability lies between 0.5 and 0.95
        values = line.get_ydata()
        # k 1: all but one benign flagged; k 2: two of three found, one false alarm; k 3: one found
        assert values[:3] == pytest.approx([100 * (6 / 7 + 2 / 3) / 2, 175 / 3, 100 * 7 / 12])
        assert len(values) == MAX_K and values[-1] == pytest.approx(100 * (4 / 7) / 2)
    assert (chosen.get_xdata()[0], row.points[0].k) == (1, 1)
    assert chosen.get_ydata()[0] == lines[-1].get_ydata()[0]


def test_stop_positions_are_drawn_by_hand(tmp_path):
    """Stopped after 2 of 4 and after 4 of 4 tokens: half in 40–50 %, half in 50–100 %."""
    valid = split_of((1, (0.95, 0.95), (1, 1)), (0, (0.95, 0.1), (0, 0)))  # chooses k 2
    row = row_of(tmp_path / "scm", valid, split_of(*HARMFUL, *BENIGN))
    ours, theirs = draw_stops([row], looks_of([row.name])).axes[0].containers
    assert [bar.get_height() for bar in ours] == [0, 0, 0, 0, 50, 50]
    paper = [49.8, 23.4, 9.7, 5.1, 2.8, 9.5]
    assert [bar.get_height() for bar in theirs] == pytest.approx(paper)
    rows = [dataclasses.replace(row, name=f"m{number}") for number in range(6)]
    titles = [
        axes.get_title() for axes in draw_stops(rows, looks_of(row.name for row in rows)).axes
    ]
    assert [title.split("\n")[0] for title in titles] == [
        f"m{number} (θ 0.9, k 2)" for number in range(6)
    ]


def test_tests_are_found_at_any_depth(tmp_path):
    for name in ("b/c", "a", ".hidden/d", "b/.scm.1.partial"):
        write_run(tmp_path / name)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "run.json").write_text("{}")
    assert find_tests(tmp_path) == [tmp_path / "a", tmp_path / "b" / "c"]
    assert find_tests(tmp_path / "a") == [tmp_path / "a"]
    assert find_tests(tmp_path / "missing") == []


def test_one_section_and_one_seed_are_shown(tmp_path):
    common, other = random_split(10, 1), random_split(12, 1)
    for name, row, seed, test in (
        ("a", "tfidf", None, other),
        ("b", "length", None, common),
        ("c/1", "scm", 1, common),
        ("c/2", "scm", 2, common),
    ):
        write_run(tmp_path / name, row, name[0], valid=common, test=test, seed=seed)
    rows, notes = pick(sections_of(find_runs(tmp_path)))
    assert [row.name for row in rows if row.kind == "full"] == ["c", "b"]  # the table's order
    assert notes == [
        f"{tmp_path}/c/2: left out, figures show {tmp_path}/c/1 of the same name",
        f"{tmp_path}/a: left out, it was tested on another split than the rest",
    ]


def test_a_name_looks_the_same_everywhere_and_unlike_others():
    found = looks_of(f"m{n % 9}" for n in range(18))
    lines = {(look["color"], str(look["linestyle"])) for look in found.values()}
    assert len(found) == len(lines) == 9


@pytest.fixture()
def png_alone(monkeypatch):
    """Spares the time that PDF takes."""
    monkeypatch.setattr("reports.figures.FORMATS", ("png",))


def drawn(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.png"))


@pytest.mark.slow
def test_the_script_draws_all_figures(tmp_path):
    split = random_split(60, 5)
    write_run(tmp_path / "scm", valid=split, test=split)
    write_run(tmp_path / "tfidf", "tfidf", "TF-IDF", valid=split, test=split)
    alone = dataclasses.replace(split, token_probs=None)
    write_run(tmp_path / "length", "length", "length alone", valid=split, test=alone)
    done = run("bash", "scripts/make-figures.sh", tmp_path)
    assert "drawn: SCM, TF-IDF, length alone" in done.stdout and "left out" not in done.stdout
    folder = tmp_path / "figures"
    assert drawn(folder) == list(FIGURES)
    for name in FIGURES:
        picture = imread(folder / f"{name}.png")  # (height, width, channels)
        assert picture.shape[1] >= 960 and len(np.unique(picture)) > 20
        content = (folder / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF") and b"/Type3" not in content
        assert b"/CIDFontType2" in content and b"/FontFile2" in content  # embedded
    content = json.loads((folder / "figures.json").read_text())
    assert [method["row"] for method in content["drawn"]] == ["scm", "tfidf", "length"]
    with pytest.raises(FinishedAlready):
        main(FigureConfig(str(tmp_path)))


ONE_CLASS = {
    "harmful": (HARMFUL, ["leaked", "stop_positions", "stop_words", "stopped_over_seen"]),
    "benign": (BENIGN, []),
}


@pytest.mark.parametrize("name", ONE_CLASS)
def test_one_class_leaves_out_what_needs_both(tmp_path, capsys, png_alone, name):
    rows, expected = ONE_CLASS[name]
    write_run(tmp_path / "scm", valid=split_of(*HARMFUL, *BENIGN), test=split_of(*rows))
    main(FigureConfig(str(tmp_path)))
    assert drawn(tmp_path / "figures") == expected
    out = capsys.readouterr().out
    for figure in set(FIGURES) - set(expected):
        assert f"{figure}: left out, " in out


def test_what_needs_scm_or_partial_detection_is_left_out(tmp_path, capsys, png_alone):
    split = random_split(20, 3)
    write_run(tmp_path / "in" / "qwen", "qwen-partial", "Qwen", valid=split, test=split)
    main(FigureConfig(str(tmp_path / "in"), str(tmp_path / "1")))
    assert drawn(tmp_path / "1") == ["leaked", "macro_f1_over_k", "stopped_over_seen", "trade_off"]
    assert "stop_words: left out, there is no SCM that stops a harmful" in capsys.readouterr().out
    full = dataclasses.replace(split, token_probs=None)
    write_run(tmp_path / "full", "length", "length", test=full)
    main(FigureConfig(str(tmp_path / "full"), str(tmp_path / "2")))
    assert drawn(tmp_path / "2") == ["trade_off"]
    assert "leaked: left out, no method has partial detection" in capsys.readouterr().out


def test_an_scm_that_detects_nothing(tmp_path, capsys, png_alone):
    low = [(label, np.array(probs) / 10, labels) for label, probs, labels in (*HARMFUL, *BENIGN)]
    write_run(tmp_path / "scm", valid=random_split(30), test=split_of(*low))
    main(FigureConfig(str(tmp_path)))
    expected = ["leaked", "macro_f1_over_k", "stopped_over_seen", "trade_off"]
    assert drawn(tmp_path / "figures") == expected
    assert capsys.readouterr().out.count("stops a harmful response") == 2


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no test folder in it"):
        main(FigureConfig(str(tmp_path)))
    write_run(tmp_path / "scm")
    (tmp_path / "scm" / "metrics.json").write_text('{"row": "scm"}')
    with pytest.raises(InputError, match="scm/metrics.json: field 'method' is missing"):
        main(FigureConfig(str(tmp_path)))
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "mine").write_text("")
    with pytest.raises(InputError, match="not overwritten"):
        main(FigureConfig(str(tmp_path), str(tmp_path / "else"), overwrite=True))
    assert not (tmp_path / "figures").exists()


def test_more_methods_than_panels(tmp_path, png_alone):
    row = row_of(tmp_path / "m", random_split(20, 3), random_split(20, 3), "tfidf")
    notes = draw_all([dataclasses.replace(row, name=f"m{n}") for n in range(8)], tmp_path)
    assert [note for note in notes if "panels" in note] == [
        "macro_f1_over_k: m6 left out, there are 6 panels",
        "macro_f1_over_k: m7 left out, there are 6 panels",
    ]


NAMES = (r"run $\x$ a", "cost $5 to $10_a^", "_hidden", r"\alpha {", "模型 一 👩")


@pytest.mark.filterwarnings("error")
def test_any_name_is_shown_as_written(tmp_path, png_alone, monkeypatch, capsys):
    shown = set()

    def look(figure: Figure, path: Path, **options) -> None:
        shown.update(text.get_text() for text in figure.findobj(Text) if text.get_window_extent())
        save(figure, path, **options)

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", look)
    row = row_of(tmp_path / "m", random_split(20, 3), random_split(20, 3), "tfidf")
    draw_all([dataclasses.replace(row, name=name) for name in NAMES], tmp_path)
    plot_stop_positions(evaluate(row.runs[0].valid, row.runs[0].test, 2, 0)["partial"], NAMES[0],
                        tmp_path / "one.png")  # fmt: skip
    for name in (*NAMES[:-1], r"\u6a21\u578b \u4e00 \U0001f469"):
        assert any(text.strip().startswith(name) for text in shown), name
    assert capsys.readouterr().err.count("DejaVu Sans has no such letters") == 1

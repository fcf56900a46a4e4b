"""A moderator as a whole: classes that come and go, its folder, what it refuses."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moderator.moderator import ABOUT, WEIGHTS, Moderator, Rows
from moderator.prototypes import ClassSums
from tests.moderator.conftest import SOURCE, about_of, rows_of
from utils.files import InputError


def same(one: Moderator, other: Moderator) -> None:
    intercept = {"intercept": pytest.approx(one.about.intercept, rel=1e-6)}
    assert one.about.model_dump() == other.about.model_dump() | intercept
    for name in ("weights", "bias"):
        a, b = (getattr(some.prototypes, name) for some in (one, other))
        assert np.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert np.allclose(one.combiner.coefficients, other.combiner.coefficients)


@pytest.fixture()
def rows() -> Rows:
    return rows_of((30, 30, 8))


def without(rows: Rows, number: int) -> Rows:
    """The same but for a class's training rows; in validation its prompts stay harmful."""
    stays = rows.valid | (rows.classes != number)
    return Rows(*(getattr(rows, name)[stays] for name in ("states", "classes", "label", "valid")))


@pytest.mark.parametrize("combine", ["l1", "vote", "last", "best"])
@pytest.mark.parametrize("prototype", ["gda", "nearest-mean"])
def test_adding_a_class_is_fitting_anew(rows, combine, prototype):
    of = {"combine": combine, "prototype": prototype}
    old = Moderator.fit(about_of("fraud", **of), without(rows, 2))
    new = rows.states[(rows.classes == 2) & ~rows.valid]
    same(old.with_class("hate", new), Moderator.fit(about_of("fraud", "hate", **of), rows))


def test_sums_that_were_gathered_before_are_not_gathered_again(rows, monkeypatch):
    """Classes come one after the other; each prompt is added once."""
    sums = ClassSums(3, 3, 5)
    rows.gather(~rows.valid & (rows.classes < 2), sums)
    less, first = without(rows, 2), sums.first(2)
    expected = Moderator.fit(about_of("fraud"), less)
    same(Moderator.fit(about_of("fraud"), less, first), expected)
    new = (rows.classes == 2) & ~rows.valid
    rows.gather(new, sums)
    grown = Moderator.fit(about_of("fraud", "hate"), rows)
    monkeypatch.setattr(ClassSums, "add", None)
    same(expected.with_class("hate", rows.of(new), sums), grown)
    with pytest.raises(ValueError, match="more than the first 2 classes"):
        sums.first(2)


def test_removing_a_class_is_never_having_seen_it(rows):
    both = Moderator.fit(about_of("fraud", "hate"), rows)
    same(both.without_class("hate"), Moderator.fit(about_of("fraud"), without(rows, 2)))
    other = both.without_class("fraud")
    assert other.about.classes == ["benign", "hate"] and other.about.counts == [30, 8]
    same(other.with_class("more", rows.states[:3]).without_class("more"), other)


@pytest.mark.parametrize("name", ["benign", "unknown"])
def test_a_class_that_is_none_cannot_go(rows, name):
    moderator = Moderator.fit(about_of("fraud", "hate"), rows)
    with pytest.raises(InputError, match=f"--name: '{name}' is not one of the harmful classes"):
        moderator.without_class(name)


def test_the_last_class_stays_and_none_comes_twice():
    moderator = Moderator.fit(about_of("harmful"), rows_of((9, 9)))
    with pytest.raises(InputError, match="the only harmful class"):
        moderator.without_class("harmful")
    with pytest.raises(InputError, match="there already"):
        moderator.with_class("harmful", np.zeros((1, 3, 5)))


def test_a_folder_brings_it_back(tmp_path, rows):
    made = Moderator.fit(about_of("fraud", "hate"), rows)
    made.save(tmp_path, keep_states=True)
    read = Moderator.load(tmp_path, with_states=True)
    assert read.about == made.about
    assert (read.scores(rows.states) == made.scores(rows.states)).all()
    assert read.judge(rows.states[:4]) == made.judge(rows.states[:4])
    same(read.with_class("new", rows.states[:3]), made.with_class("new", rows.states[:3]))


def test_states_that_were_not_kept_allow_no_change(tmp_path, rows):
    Moderator.fit(about_of("fraud", "hate"), rows).save(tmp_path, keep_states=False)
    with pytest.raises(InputError, match="train it with --keep-states"):
        Moderator.load(tmp_path, with_states=True).without_class("hate")


@pytest.mark.parametrize("combine", ["l1", "vote", "last", "best"])
def test_a_verdict_that_is_not_a_number_is_none(rows, combine):
    moderator = Moderator.fit(about_of("fraud", "hate", combine=combine), rows)
    states = rows.states[:2].copy()
    states[1, -1, 0] = np.nan
    with pytest.raises(RuntimeError, match="not a number"):
        moderator.judge(states)


def test_verdicts(rows):
    moderator = Moderator.fit(about_of("fraud", "hate"), rows)
    scores = moderator.scores(rows.states)
    for verdict, score in zip(moderator.judge(rows.states), scores, strict=True):
        assert verdict.score == score and verdict.flagged == (score >= moderator.about.threshold)
        assert list(verdict.classes) == ["benign", "fraud", "hate"]
        assert sum(verdict.classes.values()) == pytest.approx(1)
        assert verdict.layers == moderator.combiner.layers


def test_a_promise_that_cannot_be_kept_flags_nothing():
    about = about_of("harmful", target_false_alarm=0.01)
    moderator = Moderator.fit(about, rows_of((9, 9)))
    assert moderator.about.threshold is None
    assert not any(one.flagged for one in moderator.judge(rows_of((9, 9)).states))


def test_a_promised_share_of_false_alarms():
    rows = rows_of((60, 60), valid=80, apart=0.8)
    strict = Moderator.fit(about_of("harmful", target_false_alarm=0.1), rows)
    benign = rows.states[rows.valid & (rows.label == 0)]
    flagged = [verdict.flagged for verdict in strict.judge(benign)]
    assert 1 <= sum(flagged) <= 4  # of 40


def test_another_model_is_refused(rows):
    moderator = Moderator.fit(about_of("fraud", "hate"), rows)
    moderator.check(SOURCE, "x")
    with pytest.raises(InputError, match=r"x: field 'source.model': .* another \('m', not 'n'\)"):
        moderator.check(SOURCE | {"model": "n"}, "x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda about: about.pop("classes"), "field 'classes' is missing"),
        (lambda about: about.update(more=1), "field 'more'"),
        (lambda about: about.update(threshold="high"), "field 'threshold'"),
        (lambda about: about["classes"].append("x"), "tensor 'weights'"),
    ],
)
def test_a_spoilt_folder_is_refused(tmp_path, rows, spoil, message):
    Moderator.fit(about_of("fraud", "hate"), rows).save(tmp_path, keep_states=False)
    about = json.loads((tmp_path / ABOUT).read_text())
    spoil(about)
    (tmp_path / ABOUT).write_text(json.dumps(about))
    with pytest.raises(InputError, match=message):
        Moderator.load(tmp_path, with_states=True)


def test_spoilt_weights_are_refused(tmp_path, rows):
    Moderator.fit(about_of("fraud", "hate"), rows).save(tmp_path, keep_states=False)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["bias"][0, 0] = np.nan
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="tensor 'bias': holds what is not a number"):
        Moderator.load(tmp_path, with_states=True)
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be read"):
        Moderator.load(tmp_path, with_states=True)


def test_a_class_without_prompts_and_a_validation_of_one_class_are_refused(rows):
    with pytest.raises(InputError, match="class 'hate': no prompt"):
        Moderator.fit(about_of("fraud", "hate"), without(rows, 2))
    rows.label[rows.valid] = 1
    with pytest.raises(InputError, match="split 'valid'"):
        Moderator.fit(about_of("fraud", "hate"), rows)

"""Curves of the moderator: they are what trainings and tests give, one by one."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.predictions import METRICS
from moderator.moderator import Moderator
from moderator.train import class_names, class_of
from moderator.train import main as train
from test.curve_material import Material, spread
from test.curve_tables import SHOWN
from test.new_class import class_shares, measure_new_class
from test.prompt_curves import main, read_splits
from test.prompt_options import ModeratorTestConfig, PromptCurvesConfig
from test.prompts import main as measure
from tests.conftest import run
from tests.moderator.test_commands import fit_config
from utils.files import InputError, read_json

NEW = "poison"


def rewritten(prompts, path, change):
    """The prompts with some left out (None) or changed."""
    rows = [change(json.loads(line)) for line in prompts.read_text().splitlines()]
    path.write_text("\n".join(json.dumps(row) for row in rows if row))
    return path


@pytest.fixture(scope="module")
def given(prompts, tiny, tmp_path_factory):
    """Options of curves; one category stands in valid and test alone, some labels are wrong."""
    folder = tmp_path_factory.mktemp("curves")

    def change(row):
        if (row["split"], row["category"]) == ("train", NEW):
            return None
        wrong = int(row["id"].split("-")[1]) % 5 == 2 or row["id"].endswith("7")
        return row | ({"label": 1 - row["label"], "category": None} if wrong else {})

    return {
        "prompts": str(rewritten(prompts, folder / "p.jsonl", change)),
        "base_model_path": str(tiny),
        "state_cache": str(folder / "states"),
        "output_dir": str(folder / "curves"),
        "counts": [4, 2],
        "strengths": [0.3, 1.0],
        "new_class": NEW,
        "new_counts": [2, 100],
        "draws": 2,
        "bootstrap": 50,
    }


@pytest.fixture(scope="module")
def made(given, tmp_path_factory):
    """Content of curves.json, and a function that trains and tests on its own."""
    main(PromptCurvesConfig(**given))

    def test_of(prompts=given["prompts"], **options):
        folder = tmp_path_factory.mktemp("one")
        model = {"base_model_path": given["base_model_path"], "state_cache": given["state_cache"]}
        train(fit_config(prompts, "", folder / "mlpm", **model, **options))
        measure(
            ModeratorTestConfig(
                moderator_path=str(folder / "mlpm"), prompts=str(prompts), bootstrap=50,
                output_dir=str(folder / "test"), **model,
            )
        )  # fmt: skip
        return read_json(folder / "test" / METRICS)

    return read_json(f"{given['output_dir']}/curves.json"), test_of


def same(point, tested):
    for name in SHOWN.values():
        for part in ("value", "low", "high"):
            assert point[name][part] == pytest.approx(tested["full"]["test"][name][part])


def test_a_fit_on_all_prompts_is_the_commands(made):
    result, test_of = made
    tested = test_of()
    assert [one["c"] for one in result["strengths"]] == [0.3, 1.0]
    same(result["strengths"][-1]["test"], tested)
    same(result["counts"][-1], tested)
    assert result["counts"][-1]["per_class"] is None
    assert result["strengths"][-1]["threshold"] == tested["full"]["theta"]
    valid = result["strengths"][-1]["valid"]["auroc"]["value"]
    assert valid == pytest.approx(tested["full"]["valid"]["auroc"])
    same(result["strengths"][0]["test"], test_of(c=0.3))


def test_the_test_split_chooses_no_threshold(made, given, tmp_path):
    def flip(row):
        flipped = {"label": 1 - row["label"], "category": None}
        return row | (flipped if row["split"] == "test" else {})

    path = rewritten(Path(given["prompts"]), tmp_path / "p.jsonl", flip)
    changes = {"prompts": str(path), "output_dir": str(tmp_path / "curves"), "counts": [2]}
    main(PromptCurvesConfig(**given | changes))
    result = read_json(tmp_path / "curves" / "curves.json")
    for name in ("layers", "strengths"):
        for one, other in zip(made[0][name], result[name], strict=True):
            assert one["threshold"] == other["threshold"]
            assert one["test"]["auroc"]["value"] != other["test"]["auroc"]["value"]


def test_the_last_layer_alone_is_the_combiner_of_that_name(made):
    result, test_of = made
    assert [one["layer"] for one in result["layers"]] == [1, 2, 3]
    same(result["layers"][-1]["test"], test_of(combine="last"))


def test_all_classes_added_are_the_categories(made):
    result, test_of = made
    assert [one["added"] for one in result["classes"]] == ["harmful", "weapon"]
    same(result["classes"][-1], test_of(classes="categories"))


def test_draws_are_those_of_per_class(made):
    result, test_of = made
    assert [one["per_class"] for one in result["counts"]] == [2, 4, None]
    tests = [test_of(per_class=4, seed=seed)["full"]["test"] for seed in (42, 43)]
    for name in SHOWN.values():
        expected = spread([one[name]["value"] for one in tests])
        assert result["counts"][1][name] == pytest.approx(expected)


def test_all_examples_of_a_new_class_are_as_if_training_had_them(made, given, tmp_path):
    result, test_of = made
    points = result["new_class"]["points"]
    assert [(one["examples"], one["draws"]) for one in points] == [(0, 1), (2, 2), (3, 1)]

    def change(row):
        return row | (
            {"split": "train"} if (row["split"], row["category"]) == ("valid", NEW) else {}
        )

    with open(given["prompts"]) as file:
        (tmp_path / "given.jsonl").write_text(file.read())
    moved = rewritten(tmp_path / "given.jsonl", tmp_path / "moved.jsonl", change)
    tested = test_of(moved, classes="categories")["flagged"]
    assert points[-1]["recall"]["value"] == pytest.approx(tested[NEW]["flagged"]["value"])
    assert points[-1]["false_alarms"]["value"] == pytest.approx(
        tested["benign"]["flagged"]["value"]
    )
    assert points[0]["named"]["value"] == 0


def test_no_prompt_of_a_new_class_chooses_a_threshold(given, monkeypatch):
    config = PromptCurvesConfig(**given)
    material = Material.read(config, read_splits(config))
    prompts, fits, fit = material.prompts, [], Moderator.fit.__func__
    own = {material.states[one.id].tobytes() for one in prompts["valid"] if one.category == NEW}

    def watched(cls, about, rows, sums=None):
        fits.append(
            [{one.tobytes() for one in rows.of(some)} for some in (rows.valid, ~rows.valid)]
        )
        return fit(cls, about, rows, sums)

    monkeypatch.setattr(Moderator, "fit", classmethod(watched))
    names = class_names(prompts["train"], by_category=True)
    sums = material.sums(len(names) + 1)
    material.add(sums, prompts["train"], names, by_category=True)
    measure_new_class(material, names, sums, NEW)
    assert [len(own & taught) for _, taught in fits] == [0, 2, 2, 3]
    assert len(own) == 3 and not any(own & chose for chose, _ in fits)
    others = sum(class_of(one, True) != NEW for one in prompts["valid"])
    assert all(len(chose) == others for chose, _ in fits)


def test_a_class_that_is_not_new_is_left_out(given, tmp_path):
    for name, reason in (("weapon", "split 'train' has prompts"), ("x", "split 'valid' has no")):
        folder = tmp_path / name
        changed = {"new_class": name, "output_dir": str(folder), "counts": []}
        main(PromptCurvesConfig(**given | changed))
        assert reason in read_json(folder / "curves.json")["new_class"]["left_out"]
        assert f"Left out: {reason}" in (folder / "curves.md").read_text()
        assert (folder / "curves.png").stat().st_size


def test_shares_of_a_class_by_hand():
    own, flagged = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    named = np.array([0, 1, 0, 0, 1], bool)
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 0, 0, 1], [0, 0, 0, 1, 1]])
    found = class_shares(own, flagged, named, weights)
    nan = np.nan
    assert np.allclose(found["recall"], [2 / 3, 1, nan], equal_nan=True)
    assert np.allclose(found["false_alarms"], [0.5, 0, 0.5])
    assert np.allclose(found["named"], [1 / 3, 0, nan], equal_nan=True)


@pytest.mark.parametrize(
    "options",
    [
        {"counts": [0]},
        {"strengths": [1.0, 1.0]},
        {"strengths": [-1.0]},
        {"new_counts": [0]},
        {"draws": 0},
        {"c": 0.0},
        {"bootstrap": 0},
        {"monitor_path": "x"},
    ],
    ids=str,
)
def test_options_that_make_no_sense(given, options):
    with pytest.raises(InputError, match=f"^--.*{next(iter(options)).replace('_', '-')}.*: "):
        PromptCurvesConfig(**given | options)


def test_more_prompts_than_there_are_and_splits_of_one_class_are_refused(given, tmp_path):
    folder = tmp_path / "out"
    changed = given | {"output_dir": str(folder), "counts": [2, 99]}
    with pytest.raises(InputError, match="^--counts: 99 of each class, but one has 10 prompts"):
        main(PromptCurvesConfig(**changed))
    lines = [json.loads(line) for line in open(given["prompts"])]
    lines = [row for row in lines if row["split"] != "test" or row["label"]]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match="^split 'test': harmful and benign prompts are both"):
        main(PromptCurvesConfig(**changed | {"prompts": str(tmp_path / "p.jsonl")}))
    assert not folder.exists()


@pytest.mark.slow
def test_the_script_draws_curves(given, made, tmp_path):
    """Through the shell, as a user does."""
    folder, words = tmp_path / "curves", []
    for name, value in (given | {"output_dir": folder}).items():
        several = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *several]
    said = run("bash", "scripts/run-mlpm.sh", "curves", *words).stdout
    assert f"## A class that training never saw: {NEW}" in said
    assert read_json(folder / "curves.json") == made[0]
    assert {path.name for path in folder.iterdir()} == {
        "curves.json", "curves.md", "curves.png", "run.json",
    }  # fmt: skip
    again = run("bash", "scripts/run-mlpm.sh", "curves", *words)
    assert "finished already" in again.stdout

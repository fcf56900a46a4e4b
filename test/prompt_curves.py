"""Curves of the moderator: layers, C, prompts of a class, classes (scripts/run-mlpm.sh curves).

All come from one reading of the prompts. Each fit chooses its threshold on validation, as
`moderator.train` does, and is measured on test. What was summed for one fit serves the next: a
draw of many prompts holds that of fewer, and classes are added one after the other.

Source: arXiv 2502.16174, its figures of layers, of C, of samples a class and of added classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.decisions import FULL_THETAS, select_full
from evaluation.metrics import point_metrics
from moderator.combiner import Combiner, fit_combiner
from moderator.moderator import Moderator
from moderator.prompts import BENIGN, Prompt, labels_of, read_prompts
from moderator.prototypes import ClassSums
from moderator.train import HARMFUL, class_names, class_of, draw
from reports.prompt_curves import draw_curves
from test.curve_material import SPLITS, Material, Point, over_draws
from test.curve_tables import SHOWN, as_markdown
from test.new_class import measure_new_class, refuse_new_class
from test.prompt_options import PromptCurvesConfig
from utils.files import InputError, read_json, write_bytes, write_json
from utils.run_record import run_folder


def measure_combiners(
    material: Material, moderator: Moderator, strengths: Sequence[float]
) -> tuple[list[Point], list[Point]]:
    """Measures each layer alone, and the regression at each C, of one moderator's prototypes.

    Returns:
        A point a layer, its metrics on test; a point a C, with those on valid and the layers that
        speak.
    """
    said = {
        name: moderator.prototypes.probabilities(material.of(material.prompts[name]))
        for name in SPLITS
    }
    label = {name: labels_of(material.prompts[name]) for name in SPLITS}

    def measure(combiner: Combiner, layers: int | None = None) -> Point:
        scores = {
            name: combiner.score(some[:, :layers]).astype(np.float32) for name, some in said.items()
        }
        threshold = select_full(scores["valid"], label["valid"], FULL_THETAS)
        return {"threshold": threshold} | {
            name: material.measure(material.outcome(name, scores[name], threshold))
            for name in ("valid", "test")
        }

    last = fit_combiner("last", said["train"], label["train"], material.config.c)
    layers = [
        {"layer": layer} | measure(last, layer)
        for layer in tqdm(range(1, material.source["layers"] + 1), "layers")
    ]
    swept = []
    for strength in tqdm(strengths, "C"):
        combiner = fit_combiner("l1", said["train"], label["train"], strength)
        swept.append({"c": strength, "layers": combiner.layers} | measure(combiner))
    return layers, swept


def measure_counts(material: Material, counts: Sequence[int]) -> list[Point]:
    """Measures moderators of a few training prompts of each class, drawn again and again.

    A draw is shared by all layers, and holds those of fewer prompts with the same seed.

    Returns:
        A point a count.
    """
    config, names = material.config, [BENIGN, HARMFUL]
    found: dict[int, list[Point]] = {count: [] for count in counts}
    for seed in tqdm(range(config.seed, config.seed + config.draws), "draws"):
        sums, seen = material.sums(2), set()
        for count in counts:
            train = draw(material.prompts["train"], False, count, seed)
            new = [one for one in train if one.id not in seen]
            material.add(sums, new, names, by_category=False)
            seen |= {one.id for one in new}
            moderator = material.fit(train, material.prompts["valid"], names, sums, False)
            measured = point_metrics(material.judge(moderator))
            found[count].append({name: measured[name] for name in SHOWN.values()})
    return [
        {"per_class": count, "draws": config.draws} | over_draws(draws)
        for count, draws in found.items()
    ]


def measure_classes(material: Material, names: list[str], sums: ClassSums) -> list[Point]:
    """Measures moderators of more and more categories as classes, the largest first.

    Args:
        names: Classes, the benign one first.
        sums: Empty; in the end they hold all training prompts.

    Returns:
        A point an addition. Harmful prompts of classes that were not added yet are in valid and
        test, but not in training.
    """
    points, train = [], []
    for number, name in enumerate(tqdm(names, "classes"), start=1):
        new = [one for one in material.prompts["train"] if class_of(one, True) == name]
        material.add(sums, new, names, by_category=True)
        train += new
        if number > 1:
            some, known = sums.first(number), names[:number]
            moderator = material.fit(train, material.prompts["valid"], known, some, True)
            measured = material.measure(material.judge(moderator))
            points.append({"added": name, "prompts": len(new)} | measured)
    return points


def read_splits(config: PromptCurvesConfig) -> dict[str, list[Prompt]]:
    """Reads the prompts.

    Raises:
        InputError: A split is missing or lacks a class, or --counts asks for more than there are.
    """
    splits = read_prompts(Path(config.prompts), *SPLITS)
    for name in SPLITS:
        if len(set(labels_of(splits[name]))) < 2:
            raise InputError(f"split '{name}': harmful and benign prompts are both needed")
    fewest = int(np.bincount(labels_of(splits["train"])).min())
    if config.counts and config.counts[-1] > fewest:
        raise InputError(
            f"--counts: {config.counts[-1]} of each class, but one has {fewest} prompts in 'train'"
        )
    return splits


def measure_all(material: Material) -> dict[str, Any]:
    """Returns the content of curves.json."""
    config, prompts = material.config, material.prompts
    sums, two = material.sums(2), [BENIGN, HARMFUL]
    material.add(sums, prompts["train"], two, by_category=False)
    moderator = material.fit(prompts["train"], prompts["valid"], two, sums, False)
    layers, strengths = measure_combiners(material, moderator, config.strengths)
    counts = measure_counts(material, config.counts)
    counts.append({"per_class": None, "draws": 1} | material.measure(material.judge(moderator)))
    names = class_names(prompts["train"], by_category=True)
    sums = material.sums(len(names) + 1)  # a place for the new class
    classes = measure_classes(material, names, sums)
    new: dict[str, Any] = {"name": config.new_class}
    new["left_out"] = refuse_new_class(prompts, config.new_class)
    if not new["left_out"]:
        new["points"] = measure_new_class(material, names, sums, config.new_class)
    return {
        "source": material.source,
        "prompts": {
            name: {"all": len(some), "harmful": int(labels_of(some).sum())}
            for name, some in prompts.items()
        },
        "c": config.c,
        "resamples": config.bootstrap,
        "layers": layers,
        "strengths": strengths,
        "counts": counts,
        "classes": classes,
        "new_class": new,
    }


def main(config: PromptCurvesConfig) -> None:
    """Measures the curves, writes and draws them.

    Raises:
        InputError: The prompts or the model are unfit.
    """
    with run_folder(config) as folder:
        material = Material.read(config, read_splits(config))
        write_json(folder / "curves.json", measure_all(material))
        result = read_json(folder / "curves.json")  # NaN has become null
        table = as_markdown(result)
        write_bytes(folder / "curves.md", table.encode())
        draw_curves(result, folder / "curves.png")
        print(table)

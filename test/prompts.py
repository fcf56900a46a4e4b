"""Tests the moderator of prompts, and baselines on the same (scripts/run-mlpm.sh test, … floor).

A prompt is judged once and as a whole, so a test is one of full detection, and its folder is read
by all that reads tests: compare-sources.sh, make-tables.sh, make-figures.sh.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.alignment import IGNORE_INDEX
from evaluation.bootstrap import intervals
from evaluation.decisions import reaches
from evaluation.predictions import Predictions
from moderator.moderator import ABOUT, Moderator
from moderator.prompts import Prompt, labels_of, read_prompts
from moderator.train import class_of, make_reader, states_of
from test.baselines import NAMES, fit_best
from test.prompt_options import ModeratorTestConfig, PromptBaselineConfig
from test.testing import report
from utils.files import sha256_file
from utils.formatting import interval
from utils.run_record import note, run_folder

WORD = re.compile(r"\s*\S+\s*|\s+")
COMBINED = {"l1": "MLPM", "vote": "vote of the layers", "last": "last layer", "best": "best layer"}
METHODS = {"gda": "", "nearest-mean": ", nearest mean"}


def predictions_of(prompts: Sequence[Prompt], scores: np.ndarray) -> Predictions:
    """Puts prompts and their scores, float32 [N], together; a prompt's words are its tokens."""
    pieces = [WORD.findall(prompt.prompt) for prompt in prompts]
    return Predictions(
        ids=[prompt.id for prompt in prompts],
        label=labels_of(prompts),
        group=np.arange(len(prompts)),
        token_labels=[np.full(len(words), IGNORE_INDEX, dtype=np.int8) for words in pieces],
        pieces=pieces,
        response_prob=scores,
        token_probs=None,
    )


def flagged_by_class(
    prompts: Sequence[Prompt], flagged: np.ndarray, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Returns the share of each category's prompts that are flagged, with its interval."""
    names = np.array([class_of(prompt, by_category=True) for prompt in prompts])

    def share(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"flagged": weights @ values / weights.sum(axis=1)}

    found = {}
    for name in np.unique(names).tolist():
        values = flagged[names == name].astype(float)
        measured = intervals(partial(share, values), np.arange(len(values)), resamples, seed)
        found[name] = {"prompts": len(values), **measured}
    return found


def test_moderator(config: ModeratorTestConfig, folder: Path) -> None:
    """Judges the test split, and validation where there is one, by the moderator's threshold.

    Raises:
        InputError: Prompts, moderator or model are unfit or do not belong together.
    """
    path = Path(config.moderator_path)
    moderator, splits = Moderator.load(path), read_prompts(Path(config.prompts), "test")
    reader = make_reader(config)
    moderator.check(reader.about(), str(path / ABOUT))
    names = [name for name in ("valid", "test") if name in splits]
    prompts = [prompt for name in names for prompt in splits[name]]
    scores = moderator.scores(states_of(reader, [one.prompt for one in prompts], config))
    threshold = moderator.about.threshold if config.theta is None else config.theta
    threshold = np.inf if threshold is None else threshold
    made, start = {}, 0
    for name in names:
        made[name] = predictions_of(splits[name], scores[start : start + len(splits[name])])
        start += len(splits[name])
    about = moderator.about
    method = COMBINED[about.combine] + METHODS[about.prototype]
    method += " (monitor's reading)" if about.source["kind"] == "monitor" else ""
    note(
        folder,
        settings={"sha256": sha256_file(path / ABOUT), "theta": threshold, "k": None},
        layers_that_speak=moderator.combiner.layers,
    )
    flagged = reaches(made["test"].response_prob, threshold)
    by_class = flagged_by_class(splits["test"], flagged, config.bootstrap, config.seed)
    report(config, made, "mlpm", method, folder, (threshold, None), of="prompts", flagged=by_class)
    print("  flagged, by class of the prompt")
    for name, one in by_class.items():
        print(f"    {name} ({one['prompts']}): {interval(one['flagged'])}")


def test_baseline(config: PromptBaselineConfig, folder: Path) -> None:
    """Fits a baseline on train, chooses on validation, reports.

    Raises:
        InputError: A split is missing.
    """
    splits = read_prompts(Path(config.prompts), "train", "valid", "test")
    texts = {name: [prompt.prompt for prompt in split] for name, split in splits.items()}
    inputs: dict[str, Any] = texts
    if config.method == "length":
        inputs = {
            name: np.array([[len(WORD.findall(text))] for text in some])
            for name, some in texts.items()
        }
    labels = {name: labels_of(split) for name, split in splits.items()}
    fitted = fit_best(config.method, inputs, labels, config.prompts)
    made = {
        name: predictions_of(
            splits[name], fitted.predict_proba(inputs[name])[:, 1].astype(np.float32)
        )
        for name in ("valid", "test")
    }
    method = NAMES[config.method].replace("response", "prompt")
    report(config, made, config.method, method, folder, of="prompts")


def main(config: ModeratorTestConfig | PromptBaselineConfig) -> None:
    """Tests what the options name."""
    with run_folder(config) as folder:
        test = test_moderator if isinstance(config, ModeratorTestConfig) else test_baseline
        test(config, folder)

"""The output folders of tests: what a run is called and what it holds."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.predictions import FILE, METRICS, Predictions, load_predictions
from utils.files import InputError, read_json
from utils.run_record import RECORD, read_record

# what is read of a test folder's files
NEEDED = {
    METRICS: ("row", "method"),
    RECORD: (
        "config.bootstrap",
        "config.seed",
        "data.folder",
        "data.meta_sha256",
        "git",
        "device",
        "seconds",
    ),
}

# Options of a training that make no other row of it: the seed, where things lie, what changes its
# speed and memory alone.
INCIDENTAL = {
    "seed", "output_dir", "data_dir", "base_model_path", "frozen_cache", "resume", "overwrite",
    "micro_batch_size", "gradient_checkpointing", "attention", "eval_tokens", "num_workers",
    "logging_steps", "save_total_limit",
}  # fmt: skip


def ordinal(number: int) -> str:
    """Formats 1, 2, … as 1st, 2nd, …"""
    ending = "th" if number // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def with_manner(method: str, config: dict[str, Any]) -> str:
    """Adds to a method's name how a test's options approximate its scores."""
    manner = [method]
    if config.get("stride", 1) > 1:
        manner.append(f"every {ordinal(config['stride'])} prefix")
    if config.get("stop_early"):
        manner.append("stopped early")
    return ", ".join(manner)


@dataclass
class Run:
    """The output folder of one test."""

    folder: Path
    row: str
    method: str
    record: dict[str, Any]  # run.json
    valid: Predictions
    test: Predictions

    @property
    def model(self) -> dict[str, Any]:
        """What the record says of the trained model; nothing for a floor."""
        return self.record.get("model") or {}

    @property
    def target(self) -> tuple[float, int] | None:
        """The share of false alarms that θ is calibrated for, and its k."""
        config = self.record["config"]
        share = config.get("target_false_alarm")
        if not share or config.get("stop_early"):  # cut scores, of earlier tests, calibrate nothing
            return None
        return share, config["target_k"]

    @property
    def name(self) -> str:
        """The method, and how its scores were approximated."""
        return with_manner(self.method, self.record["config"])

    @property
    def training(self) -> dict[str, Any]:
        """The training's options, seed and the like apart; none where the record tells none."""
        options = self.model.get("config") or {}
        return {name: options[name] for name in sorted(options) if name not in INCIDENTAL}

    @property
    def backbone(self) -> Any:
        """What tells the backbone from others: its weights' hashes, or its path if none is told."""
        files = self.model.get("backbone") or {}
        hashes = sorted(value for name, value in files.items() if name != "folder")
        return hashes or self.model.get("base_model_path")

    @property
    def same_row(self) -> str:
        """Equal for runs that differ by the training's seed alone."""
        trained_on, tested_on = self.model.get("data_sha256"), self.record["data"]["meta_sha256"]
        return json.dumps(
            [self.row, self.name, self.training, self.backbone, trained_on, tested_on]
        )


def read_run(folder: Path) -> Run:
    """Reads a test folder.

    Raises:
        InputError: A file or field is missing, or the predictions are of an older format.
    """
    files = {name: read_json(folder / name) for name in NEEDED}
    for file, fields in NEEDED.items():
        for name in fields:
            found: Any = files[file]
            for key in name.split("."):
                if not isinstance(found, dict) or key not in found:
                    raise InputError(f"{folder / file}: field '{name}': missing; test again")
                found = found[key]
    result, record = files.values()
    splits = load_predictions(folder / FILE)
    for name, split in splits.items():
        if not len(split):
            raise InputError(f"{folder / FILE}: split '{name}' holds no response")
        if result["row"].endswith("-partial") and split.token_probs is None:
            raise InputError(f"{folder / FILE}: array '{name}_token_probs' is missing")
    return Run(folder, result["row"], result["method"], record, **splits)


def split_key(test: Predictions) -> tuple:
    """Equal for test splits of the same responses, labelled and grouped the same.

    Only detectors tested on such splits can be compared, in one table or one figure.
    """
    return tuple(test.ids), tuple(test.label.tolist()), tuple(test.group.tolist())


def find_tests(folder: Path) -> list[Path]:
    """Returns the output folders of tests in a folder and all below it, sorted.

    A test folder holds metrics.json. Hidden folders, some half-written, are not looked into.
    """
    found = []
    for path, below, files in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        found += [Path(path)] if METRICS in files else []
    return sorted(found)


def load_partial(folder: Path) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """Reads what a test of partial detection wrote.

    Returns:
        metrics.json, and the predictions of each split.

    Raises:
        InputError: The folder is no test's, or its test was of full detection alone or cut scores.
    """
    result, record = read_json(folder / METRICS), read_record(folder) or {}
    for name in ("row", "method"):
        if not isinstance(result, dict) or not isinstance(result.get(name), str):
            raise InputError(f"{folder / METRICS}: field '{name}' is missing")
    if record.get("config", {}).get("stop_early"):
        raise InputError(
            f"{folder / RECORD}: field 'config.stop_early': no threshold can be set on cut scores;"
            " test without --stop-early"
        )
    splits = load_predictions(folder / FILE)
    for name, split in splits.items():
        if split.token_probs is None:
            raise InputError(
                f"{folder / FILE}: array '{name}_token_probs' is missing: full detection alone"
                " stops no stream; name the folder of a partial-detection test"
            )
    return result, splits

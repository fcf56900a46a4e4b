"""The prior: a lower threshold for responses to flagged prompts (scripts/run-mlpm.sh prior).

The monitor stops a response once its statistic reaches a threshold. A flagged prompt makes a
harmful response likelier, so that less evidence is enough: the second threshold is at most the
first, and whatever the first one stops is stopped.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.fineharm import find_split, read_split
from evaluation.conformal import CAVEAT, conformal_theta
from evaluation.decisions import macro_f1
from evaluation.predictions import METRICS, PREDICTIONS, Predictions
from evaluation.runs import Run, read_run
from moderator.moderator import ABOUT, Moderator
from moderator.options import JudgedConfig, PriorConfig
from moderator.train import make_reader, states_of
from monitor.calibrate import SCORERS
from monitor.rules import highest_statistics
from monitor.settings import MonitorSettings, read_settings, write_settings
from utils.files import InputError, refuse_file
from utils.formatting import percent

SHARES = np.arange(1, 101) / 100  # of the ordinary threshold: the lower ones that are tried


@dataclass
class Judged:
    """A test of the monitor, and what the moderator says of its prompts.

    Attributes:
        run: The test.
        settings: The monitor's.
        flagged: bool [N] for each split of the test.
    """

    run: Run
    settings: MonitorSettings
    flagged: dict[str, np.ndarray]


def prompts_of(folder: Path, splits: dict[str, Predictions]) -> dict[str, list[str]]:
    """Returns the prompts of each split's responses, in their order.

    Raises:
        InputError: The folder lacks a response, or is no folder of records.
    """
    found = {}
    for name, split in splits.items():
        path = find_split(folder, name)
        prompts = {record["id"]: record["prompt"] for _, record in read_split(path, name)}
        missing = next((one for one in split.ids if one not in prompts), None)
        if missing is not None:
            raise InputError(f"{path}: field 'id': the tested response '{missing}' is not there")
        found[name] = [prompts[one] for one in split.ids]
    return found


def judge_prompts(config: JudgedConfig, *needed: str) -> Judged:
    """Reads a test, and lets the moderator judge the prompts of the splits that are needed.

    Raises:
        InputError: Test, records, moderator and monitor are unfit or do not belong together.
    """
    folder, path = Path(config.metrics_dir), Path(config.moderator_path)
    run = read_run(folder, partial=True, valid="valid" in needed)
    settings = read_settings(config.settings_file)
    if SCORERS.get(run.row) != settings.score_with:
        raise InputError(
            f"{folder / METRICS}: field 'row': {run.row!r} scores no tokens as the monitor of"
            f" {config.settings_file} does, by its {settings.score_with} scorer"
        )
    if run.record.data.reading != settings.reading:
        raise InputError(
            f"{config.settings_file}: field 'reading': '{settings.reading}', but {folder} was"
            f" tested with --reading {run.record.data.reading}"
        )
    moderator = Moderator.load(path)
    reader = make_reader(config.reader, config.settings_file)
    moderator.check(reader.about(), str(path / ABOUT))
    prompts = prompts_of(Path(config.input_dir), {name: getattr(run, name) for name in needed})
    texts = list(dict.fromkeys(prompt for some in prompts.values() for prompt in some))
    states = states_of(reader, texts, config.reader)
    known = dict(zip(texts, moderator.flags(moderator.scores(states)), strict=True))
    flagged = {name: np.array([known[prompt] for prompt in some]) for name, some in prompts.items()}
    return Judged(run, settings, flagged)


def choose_prior(
    statistic: np.ndarray, label: np.ndarray, flagged: np.ndarray, most: float, target: float
) -> float:
    """Returns the threshold of responses to flagged prompts.

    Args:
        statistic: float [N], the highest of each validation response.
        label: int [N], 1 = harmful.
        flagged: bool [N], whether its prompt is.
        most: The threshold of the others.
        target: Share of benign responses to flagged prompts that may be stopped, by conformal
            calibration; 0: best macro F1 of all responses, among equals the highest threshold.

    Raises:
        InputError: The share cannot be promised at a threshold that is no higher.
    """
    if target:
        benign = statistic[flagged & (label == 0)]
        threshold = conformal_theta(benign, target)
        if threshold > most:
            raise InputError(
                f"--target-false-alarm: {len(benign)} benign validation responses to flagged"
                f" prompts do not promise {target:g} at the ordinary threshold {most:.4g} or below"
            )
        return threshold
    thresholds = most * SHARES
    stopped = statistic >= np.where(flagged, thresholds[:, None], most)  # (thresholds, N)
    scores = macro_f1(stopped, label == 1)
    return float(thresholds[np.flatnonzero(scores == scores.max())[-1]])


def main(config: PriorConfig) -> None:
    """Writes the settings with the second threshold.

    Raises:
        InputError: No validation prompt is flagged, or see `choose_prior` and `judge_prompts`.
    """
    output, target = Path(config.output_file), config.target_false_alarm
    refuse_file(output, config.overwrite)
    judged = judge_prompts(config, "valid")
    valid, flagged, settings = judged.run.valid, judged.flagged["valid"], judged.settings
    label, policy = valid.label, settings.policy
    if not flagged.any():
        where = Path(config.metrics_dir) / PREDICTIONS
        raise InputError(f"{where}: split 'valid': the moderator flags no prompt of it")
    statistic = highest_statistics(policy.rule, valid.token_probs)
    most = policy.stop_threshold  # in the mode "strict" the lower of the two
    threshold = choose_prior(statistic, label, flagged, most, target)
    benign = flagged & (label == 0)
    origin = {
        "chosen_on": "valid",
        "moderator": str(config.moderator_path),
        "target_false_alarm": target or None,
        "responses": {"flagged": int(flagged.sum()), "benign": int(benign.sum())},
    }
    settings = replace(
        settings, flagged_unsafe=threshold, origin=settings.origin | {"flagged_unsafe": origin}
    )
    write_settings(output, settings)
    alarms, before = (
        (statistic[benign] >= at).mean() if benign.any() else None for at in (threshold, most)
    )
    print(
        f"{flagged.sum()} of {len(flagged)} validation responses answer a flagged prompt,"
        f" {benign.sum()} of them benign\nthreshold for these {threshold:.4g}"
        f" (others {most:.4g}): stops {percent(alarms)} % of the benign ones"
        f" (before {percent(before)} %): {output}"
    )
    if target:
        print(f"at most {100 * target:g} % are promised {CAVEAT}")

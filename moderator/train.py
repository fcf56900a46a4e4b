"""Trains a moderator of prompts (scripts/run-mlpm.sh): one pass, no gradients."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from moderator.moderator import About, Moderator, Rows
from moderator.options import FitConfig, ReaderConfig
from moderator.prompts import BENIGN, Prompt, labels_of, read_prompts
from moderator.readers import ChatReader, MonitorReader, Reader, read_prompt_states
from monitor.stream import StreamingContentMonitor
from utils.device import default_device, use_bf16
from utils.files import InputError
from utils.run_record import note, run_folder

HARMFUL = "harmful"  # the class of harmful prompts without a category


def make_reader(config: ReaderConfig, settings: Path | None = None) -> Reader:
    """Loads what reads prompts.

    Args:
        config: Names the model.
        settings: The monitor's, if not those in its folder: they say how it reads text.

    Raises:
        InputError: The folder holds no such model.
    """
    if config.monitor_path:
        return MonitorReader(
            StreamingContentMonitor.from_pretrained(config.monitor_path, settings=settings)
        )
    bf16 = use_bf16(config.precision, default_device())
    return ChatReader.from_pretrained(Path(config.base_model_path), bf16)


def states_of(reader: Reader, prompts: Sequence[str], config: ReaderConfig) -> list[np.ndarray]:
    """Reads prompts, or finds them in the cache; float32 [N] × (layers, hidden)."""
    bf16 = use_bf16(config.precision, default_device())
    kept = nullcontext(config.state_cache)
    with kept if config.state_cache else tempfile.TemporaryDirectory() as cache:
        return read_prompt_states(reader, prompts, Path(cache), bf16)


def class_names(prompts: Sequence[Prompt], by_category: bool) -> list[str]:
    """Names the classes of training prompts: benign, then those of harmful ones, largest first."""
    if not by_category:
        return [BENIGN, HARMFUL]
    counts = Counter(class_of(prompt, True) for prompt in prompts if prompt.label)
    return [BENIGN, *(name for name, _ in sorted(counts.items(), key=lambda one: (-one[1], one)))]


def class_of(prompt: Prompt, by_category: bool) -> str:
    """Names a prompt's class."""
    if not prompt.label:
        return BENIGN
    return prompt.category or HARMFUL if by_category else HARMFUL


def draw(prompts: Sequence[Prompt], by_category: bool, count: int, seed: int) -> list[Prompt]:
    """Draws prompts of each class, one draw for all layers; 0 takes all.

    Raises:
        InputError: A class has fewer.
    """
    if not count:
        return list(prompts)
    random, chosen = np.random.default_rng(seed), []
    names = np.array([class_of(prompt, by_category) for prompt in prompts])
    for name in class_names(prompts, by_category):
        rows = np.flatnonzero(names == name)
        if len(rows) < count:
            raise InputError(f"--per-class: {count} of class '{name}', which has {len(rows)}")
        chosen += random.permutation(rows)[:count].tolist()  # fewer are a part of more
    return [prompts[row] for row in sorted(chosen)]


def make_rows(
    prompts: Sequence[Prompt], states: list[np.ndarray], names: list[str], by_category: bool
) -> Rows:
    """Puts prompts of train and valid and their states together."""
    number = {name: place for place, name in enumerate(names)}
    classes = [number.get(class_of(prompt, by_category), -1) for prompt in prompts]
    is_valid = np.array([prompt.split == "valid" for prompt in prompts])
    return Rows(states, np.array(classes), labels_of(prompts), is_valid)


def main(config: FitConfig) -> None:
    """Reads train and valid, fits, writes the folder.

    Raises:
        InputError: A split is missing, or the prompts are unfit.
    """
    with run_folder(config) as folder:
        splits = read_prompts(Path(config.prompts), "train", "valid")
        by_category = config.classes == "categories"
        train = draw(splits["train"], by_category, config.per_class, config.seed)
        names = class_names(train, by_category)
        reader = make_reader(config)
        prompts = [*train, *splits["valid"]]
        states = states_of(reader, [prompt.prompt for prompt in prompts], config)
        rows = make_rows(prompts, states, names, by_category)
        about = About(
            source=reader.about(),
            classes=names,
            counts=[],
            prototype=config.prototype,
            combine=config.combine,
            c=config.c,
            intercept=0.0,
            target_false_alarm=config.target_false_alarm,
            threshold=None,
        )
        moderator = Moderator.fit(about, rows)
        moderator.save(folder, config.keep_states)
        note(folder, layers_that_speak=moderator.combiner.layers)
        tell(moderator)


def tell(moderator: Moderator) -> None:
    """Prints what a moderator is made of."""
    about = moderator.about
    counts = zip(about.classes, about.counts, strict=True)
    print("prompts:", ", ".join(f"{name} {count}" for name, count in counts))
    layers, threshold = moderator.combiner.layers, about.threshold
    print(
        f"layers that speak: {', '.join(map(str, layers)) or 'none'}"
        f" (of {about.source['layers']}); threshold"
        f" {'∞' if threshold is None else f'{threshold:.4g}'}, chosen on valid"
    )

"""Adds a class to a moderator from a few examples, or removes one (scripts/run-mlpm.sh)."""

from pathlib import Path

import numpy as np

from moderator.moderator import ABOUT, Moderator
from moderator.options import AddConfig, RemoveConfig
from moderator.prompts import read_examples
from moderator.train import make_reader, states_of, tell
from utils.run_record import run_folder


def main(config: AddConfig | RemoveConfig) -> None:
    """Changes the moderator and writes it into a folder of its own.

    Raises:
        InputError: The moderator, its model, the name or an example is unfit.
    """
    with run_folder(config) as folder:
        path = Path(config.moderator_path)
        moderator = Moderator.load(path, with_states=True)
        if isinstance(config, RemoveConfig):
            changed = moderator.without_class(config.name)
        else:
            examples, reader = read_examples(Path(config.examples)), make_reader(config)
            moderator.check(reader.about(), str(path / ABOUT))
            states = np.stack(states_of(reader, examples, config))
            changed = moderator.with_class(config.name, states)
        changed.save(folder, keep_states=True)
        tell(changed)

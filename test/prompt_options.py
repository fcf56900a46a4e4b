"""Options of the tests of prompts."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moderator.options import JudgedConfig, moderator_hashes
from test.options import BootstrapConfig
from utils.files import InputError, sha256_file


@dataclass(kw_only=True)
class WithMonitorConfig(JudgedConfig, BootstrapConfig):
    """Options of measuring what the moderator is worth beside the monitor."""

    output_dir: str
    """Folder for the table."""
    harmless: str = ""
    """Regular expression that matches the ids, whole, of responses to harmless prompts; false
    refusals are told for them and for the other benign responses apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.harmless)
        except re.error as error:
            raise InputError(f"--harmless: '{self.harmless}': {error}") from None

    def inputs(self) -> dict[str, Any]:
        """Returns hashes of what is read."""
        return {
            "moderator": moderator_hashes(self.moderator_path),
            "settings_sha256": sha256_file(self.settings_file),
            "tests": {self.metrics_dir: sha256_file(Path(self.metrics_dir) / "predictions.npz")},
            **self.reader.model_inputs(),
        }

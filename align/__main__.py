"""Alignment with SCM as the annotator: python -m align train|pairs …"""

from align.options import AlignConfig, SampleConfig
from utils.cli import Command, run_command

COMMANDS = {
    "train": Command(AlignConfig, "align.train"),
    "pairs": Command(SampleConfig, "align.sample"),
}

if __name__ == "__main__":
    run_command(COMMANDS)

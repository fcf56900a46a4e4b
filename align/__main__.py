"""Alignment with SCM as the annotator: python -m align labels|train|pairs …"""

from align.options import AlignConfig, LabelsConfig, SampleConfig
from utils.cli import Command, run_command

COMMANDS = {
    "labels": Command(LabelsConfig, "align.agreement"),
    "train": Command(AlignConfig, "align.train"),
    "pairs": Command(SampleConfig, "align.sample"),
}

if __name__ == "__main__":
    run_command(COMMANDS)

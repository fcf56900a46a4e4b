"""The annotation pipeline: python -m annotation annotate …"""

from annotation.options import BuildConfig
from utils.cli import Command, run_command

COMMANDS = {
    "annotate": Command(BuildConfig, "annotation.pipeline"),
}

if __name__ == "__main__":
    run_command(COMMANDS)

"""Commands of data preparation: python -m data prepare …"""

from data.options import DataConfig
from utils.cli import Command, run_command

COMMANDS = {
    "prepare": Command(DataConfig, "data.prepare", ("output_dir", "tokenizer_path")),
}

if __name__ == "__main__":
    run_command(COMMANDS)

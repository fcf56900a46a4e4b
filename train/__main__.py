"""The trainings: python -m train qwen|modernbert …"""

from train.options import QwenConfig, TrainConfig
from utils.cli import Command, run_command

COMMANDS = {
    "qwen": Command(QwenConfig, "train.train_qwen"),
    "modernbert": Command(TrainConfig, "train.train_modernbert"),
}

if __name__ == "__main__":
    run_command(COMMANDS)

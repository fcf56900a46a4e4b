"""Commands of the moderator: python -m moderator train|add-class|remove-class|prior …"""

from moderator.options import AddConfig, FitConfig, PriorConfig, RemoveConfig
from utils.cli import Command, run_command

COMMANDS = {
    "train": Command(FitConfig, "moderator.train"),
    "add-class": Command(AddConfig, "moderator.change"),
    "remove-class": Command(RemoveConfig, "moderator.change"),
    "prior": Command(PriorConfig, "moderator.prior"),
}

if __name__ == "__main__":
    run_command(COMMANDS)

"""Commands that report: python -m reports tables|figures|examples …"""

from reports.options import ExamplesConfig, FigureConfig, TablesConfig
from utils.cli import Command, run_command

COMMANDS = {
    "tables": Command(TablesConfig, "reports.tables", ("runs_dir",)),
    "figures": Command(FigureConfig, "reports.figures", ("runs_dir",)),
    "examples": Command(ExamplesConfig, "reports.examples_page", ("test_dir",)),
}

if __name__ == "__main__":
    run_command(COMMANDS)

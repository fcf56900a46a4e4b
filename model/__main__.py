"""Commands that make model folders: python -m model get-backbone|export-classifier …"""

from model.get_backbone import BackboneConfig
from model.options import ExportConfig
from utils.cli import Command, run_command

COMMANDS = {
    "get-backbone": Command(BackboneConfig, "model.get_backbone", ("name", "output_dir")),
    "export-classifier": Command(
        ExportConfig, "model.export_classifier", ("model_path", "output_dir")
    ),
}

if __name__ == "__main__":
    run_command(COMMANDS)

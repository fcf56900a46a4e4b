"""Commands that make model folders: python -m model get-backbone|get-scm|pack-scm|… …"""

from model.get_backbone import BackboneConfig
from model.get_scm import ScmConfig
from model.options import ExportConfig, PackConfig
from utils.cli import Command, run_command

COMMANDS = {
    "get-backbone": Command(BackboneConfig, "model.get_backbone", ("name", "output_dir")),
    "get-scm": Command(ScmConfig, "model.get_scm", ("name", "output_dir")),
    "pack-scm": Command(PackConfig, "model.pack_scm"),
    "export-classifier": Command(
        ExportConfig, "model.export_classifier", ("model_path", "output_dir")
    ),
}

if __name__ == "__main__":
    run_command(COMMANDS)

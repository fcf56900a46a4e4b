"""The annotation pipeline: python -m annotation ANNOTATOR …, or compare A B."""

import importlib
import pkgutil

from annotation import annotators
from annotation.options import CompareConfig
from utils.cli import Command, run_command


def find_annotators() -> dict[str, Command]:
    """Returns a command for each module of annotation.annotators."""
    names = sorted(module.name for module in pkgutil.iter_modules(annotators.__path__))
    modules = {name: importlib.import_module(f"annotation.annotators.{name}") for name in names}
    return {
        name: Command(getattr(module, f"{name.capitalize()}Config"), "annotation.pipeline")
        for name, module in modules.items()
    }


COMMANDS = {
    **find_annotators(),
    "compare": Command(CompareConfig, "annotation.agreement", ("first", "second")),
}

if __name__ == "__main__":
    run_command(COMMANDS)

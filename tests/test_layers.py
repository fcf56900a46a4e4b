"""Imports go one way: a package knows those below it alone, neighbours not each other."""

import ast

import pytest

from tests.conftest import ROOT

LAYERS = (
    {"utils"},
    {"data"},
    {"model"},
    {"evaluation"},
    {"annotation", "monitor", "train"},
    {"moderator"},
    {"align"},
    {"reports"},
    {"serve", "test"},
    {"benchmarks"},
)
LAYER_OF = {package: number for number, layer in enumerate(LAYERS) for package in layer}
FILES = sorted(path for package in LAYER_OF for path in (ROOT / package).rglob("*.py"))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def imports(source: str) -> set[str]:
    """Returns the top-level names of all modules that a source imports, inside functions, too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "an import relative to its package"
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names |= {part.value for part in ast.walk(node.args[0]) if is_text(part)}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Command":
            names.add(node.args[1].value)  # what utils.cli imports for it
    return {name.partition(".")[0] for name in names}


def upward(package: str, source: str) -> set[str]:
    """Returns the packages of this repository that a file of `package` may not import but does."""
    return {
        name
        for name in imports(source) & (set(LAYER_OF) | {"tests"})
        if name != package and not LAYER_OF.get(name, len(LAYERS)) < LAYER_OF[package]
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    package = path.relative_to(ROOT).parts[0]
    assert not upward(package, path.read_text())


def test_every_package_has_a_layer():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(LAYER_OF)


def test_what_is_refused():
    inside = "def main():\n    from test.causal import main\n"
    assert upward("utils", inside) == {"test"}
    assert upward("data", 'Command(DataConfig, "train.training")') == {"train"}
    assert upward("data", 'importlib.import_module(f"model.{name}")') == {"model"}
    assert upward("monitor", "import train.training, evaluation.runs") == {"train"}
    assert upward("test", "import data.splits, monitor.rules, tests.conftest") == {"tests"}

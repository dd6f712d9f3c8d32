"""The floors of the house: no module imports from a floor above its own, and none imports in a circle."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground. Rooms on one floor do not import one another.
FLOORS = (
    ("tokenizer",),
    ("var.utils",),
    ("var.models",),
    ("var.sampling", "var.networks", "var.data", "var.backends"),
    ("var.editing", "var.hub"),
    ("var.pipeline", "var.aim", "var.vqvae"),
    ("var.features",),
    ("var.training",),
    ("var.evaluation", "var.bench"),
    ("var.app",),
    ("var.cli",),
    ("var", "var.__main__", "var.convert", "var.generate"),  # what users import or start; nothing inside does
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@cache
def modules() -> dict[str, Path]:
    paths = [path for package in ("tokenizer", "var") for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, paths, strict=True))


@cache
def imports() -> dict[str, set[str]]:
    """List what every module imports of ours, at its top, inside functions, for type checking, and by name."""
    return {name: imported(path) for name, path in modules().items()}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in modules() else str(node.module) for name in whole)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found.update(str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))
    return {name for name in found if name.split(".")[0] in ("tokenizer", "var")}


def room(module: str) -> str:
    """The longest of FLOORS' names that the module is or lies in; `var` is only itself."""
    parts = module.split(".")
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next(name for name in names if name in FLOOR and (name != "var" or module == "var"))


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_import_exists_and_none_goes_up(module: str) -> None:
    here = room(module)
    for other in sorted(imports()[module]):
        assert other in modules(), f"{module} imports {other}, which does not exist"
        there = room(other)
        assert there == here or FLOOR[there] < FLOOR[here], f"{module} imports {other}, of {there}"


@pytest.mark.parametrize("call", ["importlib.import_module", "import_module", "__import__"])
def test_imports_by_name_are_seen(call: str, tmp_path: Path) -> None:
    (tmp_path / "low.py").write_text(f"import json\ndef f():\n    {call}('var.cli.app')\n")
    assert imported(tmp_path / "low.py") == {"var.cli.app"}


def test_nothing_imports_in_circles() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for other in imports()[module]:
                visit(other, (*above, module))
            done.add(module)

    for module in modules():
        visit(module, ())


def test_a_file_of_tests_imports_no_other() -> None:
    """What several share lies in a conftest.py, or beside it in a module without tests."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^\s*(from|import)\s+(\.|test_)", path.read_text(), re.MULTILINE), path


def test_every_package_is_installed() -> None:
    """What pyproject.toml does not list is missing from a wheel."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in modules().values()}
    assert rooms <= set(listed)

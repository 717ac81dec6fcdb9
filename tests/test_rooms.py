"""The rooms of the package: each imports only from those below it, and none has the name of a public function."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

import subcompress

PACKAGE = Path(subcompress.__file__).parent
ROOMS = (
    "errors",
    "support",
    "native",
    "tensors",
    "remote",
    "operators",
    "base",
    "format",
    "rebuild",
    "data",
    "subspace",
    "training",
    "search",
    "onnx",
    "peers",
    "peft",
    "api",
    "hub",
    "serving",
)
"""From the ground up. A room may import those before it in this list."""

LIMITS = {"rooms": 18, "modules at the top": 10, "lines of a file of tests": 400}

BESIDE = {"benchmarks", "cli", "deploy", "docs", "examples", "golden", "helpers", "models", "schemas"}
"""Folders of tests that are of no room: what lies beside the package, golden files, published schemas, and what tests
share."""


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(p for p in parts if p != "__init__")
        if name and parts[0] not in ("templates", "__main__"):
            found[name] = path
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name, below the package, of each import of ours; those inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "subcompress":
            base = node.module.partition(".")[2]
            yield from ((node.lineno, f"{base}.{a.name}" if base else a.name) for a in node.names)
        elif isinstance(node, ast.Import):
            yield from (
                (node.lineno, a.name.partition(".")[2]) for a in node.names if a.name.startswith("subcompress.")
            )


def test_every_module_is_in_a_room():
    rooms = {name.partition(".")[0] for name in modules()}
    assert rooms == set(ROOMS)


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = {name for name in settings["tool"]["setuptools"]["packages"] if name.startswith("subcompress.")}
    assert listed == {f"subcompress.{name}" for name, path in modules().items() if path.name == "__init__.py"}


def test_no_room_imports_from_one_above():
    upward = []
    for name, path in modules().items():
        own = ROOMS.index(name.partition(".")[0])
        for line, imported in imports(path):
            room = imported.partition(".")[0]
            if room in ROOMS and ROOMS.index(room) > own:
                upward.append(f"{path.relative_to(PACKAGE)}:{line} imports {imported}, which is in a room above")
    assert not upward, "\n".join(upward)


def test_there_are_few_rooms():
    names = modules()
    packages = {name for name, path in names.items() if path.name == "__init__.py" and "." not in name}
    assert len(packages) <= LIMITS["rooms"]
    assert len([n for n in names if "." not in n and n not in packages]) <= LIMITS["modules at the top"]


@pytest.mark.parametrize("name", sorted(subcompress.__all__))
def test_public_names_stay_what_they_are_after_any_import(name):
    before = getattr(subcompress, name)
    if name not in ROOMS:
        for room in pkgutil.iter_modules(subcompress.__path__):
            if room.name not in ("_native", "templates"):
                importlib.import_module(f"subcompress.{room.name}")
    assert getattr(subcompress, name) is before
    assert name not in ROOMS


def test_tests_lie_in_the_rooms_that_they_test():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - set(ROOMS) - BESIDE == set(), "a folder of tests is a room, or is listed above"
    at_the_top = {path.name for path in (ROOT / "tests").glob("*.py")}
    assert at_the_top == {"conftest.py", "make_golden.py", Path(__file__).name}, "tests lie in a room's folder"
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "pytest imports files of tests by name: no two are called alike"


def test_files_of_tests_are_short():
    most = LIMITS["lines of a file of tests"]
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert not (found := [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lines.items() if n > most]), found

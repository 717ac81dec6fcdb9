"""Networks of examples/atlas, which several benchmarks train."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "examples" / "atlas"


@cache
def example(name: str) -> ModuleType:
    """The file of that name, as a module."""
    spec = importlib.util.spec_from_file_location(f"atlas_of_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # classes look their module up there
    spec.loader.exec_module(module)
    return module

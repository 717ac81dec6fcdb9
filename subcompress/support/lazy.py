"""Modules that are imported on first use: importing torch takes a second and 190 MB, and reading a file and rebuilding
its weights on the CPU does not need it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any


class _Module:
    """A module that is imported when one of its attributes is first read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def module(name: str) -> Any:
    """Return a proxy that imports the module when one of its attributes is first read."""
    return _Module(name)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = module("torch")


def exports(package: str, names: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build `__getattr__` and `__dir__` (PEP 562) for a package whose exports are imported on first use.

    names: module within the package -> names that the package exports from it. Submodules are attributes too.
    """
    origins = {name: origin for origin, exported in names.items() for name in exported}

    def get_attribute(name: str) -> Any:
        if name in origins:
            value = getattr(importlib.import_module(f"{package}.{origins[name]}"), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *origins})

    return get_attribute, list_names

"""What is imported when it is first used, and not before: torch takes 190 MB and a second, and whoever reads a file and
rebuilds its weights on the host needs neither."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any


class _Module:
    """A module by name, imported when one of its attributes is read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


def module(name: str) -> Any:
    """The module of that name, imported when one of its attributes is first read."""
    return _Module(name)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = module("torch")


def exports(package: str, names: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562) whose names come from its modules when they are first read.

    names: module, within the package -> what of it the package exports. Modules of the package are attributes too.
    """
    places = {name: module for module, held in names.items() for name in held}

    def get(name: str) -> Any:
        if name in places:
            value = getattr(importlib.import_module(f"{package}.{places[name]}"), name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, listed

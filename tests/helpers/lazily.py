"""Packages that take seconds to import: only the process whose tests use one imports it."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import pytest


class Lazy:
    """A module that is imported when something of it is asked for the first time."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest asks every name in a file of tests for its marks
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


def needed(name: str) -> Lazy:
    """The module of that name, imported when it is used; a file of tests without its package is skipped."""
    package = name.partition(".")[0]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
    return Lazy(name)

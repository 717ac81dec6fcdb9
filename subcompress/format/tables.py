"""Numbered layouts and facts that a file can refer to instead of spelling them out. Entries are only ever added."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from subcompress.format.facts import Facts
from subcompress.tensors.layout import Layout, TensorSpec

T = TypeVar("T")


@cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(resources.files(__package__).joinpath("tables.json").read_text("utf-8"))
    return tables


@cache
def layouts() -> dict[int, Layout]:
    """Return the known layouts by number; in a file, 0 stands for an embedded one."""
    return {
        int(number): Layout(tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in entry["tensors"]))
        for number, entry in _tables()["layouts"].items()
    }


@cache
def facts() -> dict[int, Facts]:
    """Return the known facts by number; in a file, 0 stands for none and 1 for embedded ones."""
    return {int(number): Facts.from_json(entry["facts"]) for number, entry in _tables()["facts"].items()}


def number_of(table: dict[int, T], value: T) -> int | None:
    """Return the number of a value in a table, None if it is not in it."""
    return next((n for n, known in table.items() if known == value), None)


def name_of(layout: Layout) -> str | None:
    """Return the name of a known layout, which is that of its reference network."""
    number = number_of(layouts(), layout)
    return None if number is None else str(_tables()["layouts"][str(number)]["name"])


def network_of(layout: Layout) -> str | None:
    """Return the reference network with these tensors in any order; for a file on a base, that of the base."""
    tensors = set(layout)
    return next((name_of(known) for known in layouts().values() if set(known) == tensors), None)

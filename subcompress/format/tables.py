"""What a file may name instead of spelling it: layouts and facts, kept as data. Entries are added, never changed."""

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
    """Layouts by number; 0 stands for an embedded one."""
    return {
        int(number): Layout(tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in entry["tensors"]))
        for number, entry in _tables()["layouts"].items()
    }


@cache
def facts() -> dict[int, Facts]:
    """Facts by number; 0 stands for none, 1 for embedded ones."""
    return {int(number): Facts.from_json(entry["facts"]) for number, entry in _tables()["facts"].items()}


def number_of(table: dict[int, T], value: T) -> int | None:
    """The number under which a table holds that value."""
    return next((n for n, held in table.items() if held == value), None)


def name_of(layout: Layout) -> str | None:
    """The name a layout has in the table: that of the reference network it belongs to."""
    number = number_of(layouts(), layout)
    return None if number is None else str(_tables()["layouts"][str(number)]["name"])


def network_of(layout: Layout) -> str | None:
    """The reference network whose tensors these are, in whatever order: that of a base, for a file on one."""
    tensors = set(layout)
    return next((name_of(known) for known in layouts().values() if set(known) == tensors), None)

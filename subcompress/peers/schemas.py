"""What `compare` keeps in a run folder, and the one place where it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subcompress.errors import SubcompressError, shown
from subcompress.peers.bench import Row
from subcompress.training.schemas import Struct, check, read, struct_of


class Compared(Struct):
    """The record that `compare` keeps of one peer: rows, or the reason why there are none."""

    rows: tuple[dict[str, Any], ...] | None = None
    skipped: str | None = None


class Table(Struct):
    """compare/compare.json: what the rows belong to, and what there is of each peer."""

    key: dict[str, str | int]
    found: dict[str, Compared]


def table(path: Path, then: str) -> dict[str, Any] | None:
    """Read compare/compare.json; None if there is none. Raises SubcompressError."""
    held = read(path, then)
    if held is None:
        return None
    check(held, Table, str(path), then)
    for name, found in held["found"].items():
        for row in found.get("rows") or ():
            check(row, struct_of(Row, False), f"{path}: {shown(name)}", then)
        if not ("rows" in found) ^ ("skipped" in found):
            raise SubcompressError(f"{path}: {shown(name)}: expected either rows or skipped: {then}")
    return dict(held)

"""Records of trainings that have ended, as a run folder holds them."""

from __future__ import annotations

from pathlib import Path

from subcompress import format
from subcompress.base import BaseTensors
from subcompress.errors import SubcompressError
from subcompress.format.record import Coded, Record
from subcompress.subspace.plan import Plan
from subcompress.tensors.layout import Layout
from subcompress.training.run import DISCARD


def read(path: Path, base: BaseTensors | None, layout: Layout, plan: Plan, bits: int) -> Record:
    """Read a record. Raises SubcompressError for one of another network, plan or number of bits."""
    if not path.is_file():
        raise SubcompressError(f"{path}, which the journal names, is missing or is not a file: {DISCARD}")
    record = format.read(path, base)[0]
    if record.layout != layout:
        try:
            record.layout.require(layout, "this one")
            what = "its tensors are in another order"
        except SubcompressError as e:
            what = str(e).partition(": ")[0]
        raise SubcompressError(f"{path} belongs to another network ({what}): {DISCARD}")
    if (difference := _difference(record, plan, bits)) is not None:
        raise SubcompressError(f"{path} belongs to another training ({difference}): {DISCARD}")
    return record


def _difference(record: Record, plan: Plan, bits: int) -> str | None:
    """How a record differs from what this plan makes, None if it does not: seed, operators, bits."""
    if record.seed != plan.seed:
        return f"seed {record.seed}, not {plan.seed}"
    groups = record.groups[: len(plan.parts)]
    if (d := sum(g.operator.d for g in groups)) != plan.d or len(groups) < len(plan.parts):
        return f"d = {d}, not {plan.d}"
    for group, part in zip(groups, plan.parts, strict=True):
        of = [(type(o).__name__, o.D, o.d) for o in (group.operator, part.operator)]
        if of[0] != of[1]:
            return f"operator {' '.join(map(str, of[0]))}, not {' '.join(map(str, of[1]))}"
        if group.bits != bits:
            return f"{group.bits} bits, not {bits}"
    return None


def _scales(record: Record) -> list[float]:
    """The scale of the first piece of each group."""
    found: dict[int, float] = {}
    for own in record.pieces:
        for piece in own:
            if isinstance(piece.entry, Coded):
                found.setdefault(piece.entry.group, piece.entry.scale)
    return [found[g] for g in sorted(found)]


__all__ = ["read"]

"""What a subspace has trained -> the record that is packed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from subcompress.format.facts import Facts
from subcompress.format.record import (
    Coded,
    Entry,
    Factored,
    Fixed,
    Group,
    Mixed,
    Record,
    Stored,
    Tied,
    Unchanged,
    bfloat16,
)
from subcompress.operators import ExactOperator, HadamardBlocks
from subcompress.rebuild.streaming import stream
from subcompress.subspace.buffers import coded_buffers
from subcompress.subspace.plan import Plan
from subcompress.subspace.rounding import Rounding
from subcompress.subspace.starts import Start
from subcompress.tensors.layout import CODED_DTYPES, raw_bytes

ONCE = 32
"""The fewest bytes of stored tensors for which equal ones are stored once."""


def recorded(
    plan: Plan,
    rounding: Rounding,
    coordinates: Sequence[Tensor],
    state: Mapping[str, Tensor],
    untrained: Mapping[str, Tensor],
    facts: Facts,
    test_accuracy: float | None,
    of_base: Collection[str] = (),
) -> Record:
    """Build the record, with the digest of the weights that it rebuilds.

    Args:
        plan: The plan of the subspace, whose operators are exact.
        rounding: How the coordinates are rounded.
        coordinates: The integers of each part, (d_i,).
        state: The state dict of the trained network.
        untrained: Buffers and frozen parameters as they were before the training.
        facts: What the file says of inputs and labels.
        test_accuracy: What it says of its accuracy.
        of_base: Buffers and frozen parameters that had the values of the plan's base.
    """
    groups, coded = _groups(plan, rounding, coordinates)
    moved = {
        name: state[name]
        for name, before in untrained.items()
        if name in plan.starts and plan.starts[name].kind in ("buffer", "kept") and not torch.equal(before, state[name])
    }
    if plan.base is not None:
        moved |= {name: state[name] for name in of_base if not plan.base.holds(name, state[name])}
    more, values = coded_buffers(plan.layout, moved, plan.seed, len(groups))
    entries, stored = _entries(plan, coded | values, state, moved.keys())
    record = Record(plan.seed, plan.layout, (*groups, *more), entries, stored, facts, test_accuracy, base=plan.base)
    record.check()
    return replace(record, digest=stream(record))


def _groups(plan: Plan, rounding: Rounding, coordinates: Sequence[Tensor]) -> tuple[list[Group], dict[str, Coded]]:
    """The coordinates of each part, and the entry of each tensor that they act on. Scales are rounded to bfloat16, and
    the frozen constant to an integer."""
    groups: list[Group] = []
    coded: dict[str, Coded] = {}
    for part, step, c in zip(plan.parts, rounding.steps, coordinates, strict=True):
        operator = part.operator
        assert isinstance(operator, ExactOperator)
        if isinstance(operator, HadamardBlocks) and operator.K:
            operator = replace(operator, A=round(1 / step))
        for spec, scale, form in zip(part.specs, part.scales, part.forms, strict=True):
            based = form is None
            coded[spec.name] = Coded(bfloat16(scale * step), len(groups), 0.0 if form is None else form, based)
        groups.append(Group(operator, rounding.bits, c.cpu().numpy().astype(np.int32)))
    return groups, coded


def _entries(
    plan: Plan, coded: dict[str, Coded], state: Mapping[str, Tensor], moved: Set[str]
) -> tuple[tuple[Entry, ...], bytes]:
    """An entry a tensor, and the bytes of the stored ones. moved: the buffers that training has changed."""
    entries: list[Entry] = []
    stored: list[bytes] = []
    first: dict[tuple[str, tuple[int, ...], bytes], int] = {}
    for i, spec in enumerate(plan.layout):
        start = plan.starts[spec.name]
        if start.kind == "tied":
            entries.append(Tied(start.index))
        elif start.kind == "dropped":
            entries.append(Fixed() if spec.dtype in CODED_DTYPES else Stored())
            stored += [bytes(spec.nbytes)] if spec.dtype not in CODED_DTYPES else []
        elif spec.name in coded:
            entries.append(coded[spec.name])
        elif start.kind in ("coded", "factored"):
            entries.append(_entry_of(spec.name, start, coded))
        elif start.kind == "kept" and spec.name not in moved:
            entries.append(Unchanged())
        else:
            raw = raw_bytes(state[spec.name])
            same = first.setdefault((spec.dtype, spec.shape, hashlib.sha256(raw).digest()), i)
            entries.append(Stored(same if same < i and len(raw) >= ONCE else None))
            stored += [bytes(raw)] if entries[-1] == Stored() else []
    return tuple(entries), b"".join(stored)


def _entry_of(name: str, start: Start, coded: Mapping[str, Coded]) -> Entry:
    """The entry of a tensor of several pieces or with factors, or of one that no coordinate acts on."""
    items: list[Coded | Fixed] = []
    for number, piece in enumerate(start.pieces):
        items.append(Fixed(piece.form) if piece.fixed else coded[f"{name}\0{number}"])
    if start.rank:
        return Factored(start.rank, tuple(items), start.directions is not None)
    return Mixed(tuple(items), start.runs) if start.runs else items[0]


__all__ = ["recorded"]

"""From a record to values in memory that is there, on any backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from subcompress.backends.memory import HOST
from subcompress.kernels import Segment
from subcompress.layout import DTYPES
from subcompress.record import Coded, Kept, Record, Same

if TYPE_CHECKING:
    from subcompress.backends import Backend
    from subcompress.base import OnBase


def fill(record: Record, places: Mapping[str, Any], backend: Backend, *, kept: bool = True) -> None:
    """Write the record's tensors to `places`, name -> what the backend's memory holds, contiguous and of the record's
    dtypes and shapes. Tensors without a place are left out, and without `kept` those that are the base's too."""
    memory = backend.memory
    segments: list[list[Segment]] = [[] for _ in record.groups]
    based: list[tuple[Any, Any, np.ndarray]] = []  # where a sum goes, its values, and the base's
    for spec, entry, first in zip(record.layout, record.entries, record.firsts, strict=True):
        if not spec.size or spec.name not in places or isinstance(entry, Same):
            continue
        place = places[spec.name]
        if isinstance(entry, Coded):
            values = flat = memory.reals(place)
            if entry.based:
                values = memory.empty((spec.reals,), "F32") if flat.itemsize < 4 else flat
                based.append((flat, values, on_base(record).reals(spec.name)))
            segments[entry.group].append(Segment(first, values, entry.scale, entry.start))
        elif not isinstance(entry, Kept):
            memory.put(place, stored(record, first, spec.nbytes, spec.dtype).reshape(spec.shape))
        elif kept:
            memory.put(place, on_base(record).values(spec.name))
    # What is written may lie where the base does.
    ours = {memory.address(flat) for flat, _, _ in based}
    based = [(flat, values, b.copy() if HOST.address(b) in ours else b) for flat, values, b in based]
    for group, rows in zip(record.groups, segments, strict=True):
        if rows:
            backend.fill(group.operator, memory.of(group.coordinates), rows)
    for flat, values, base in based:
        memory.add_base(flat, values, base)
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Same) and spec.name in places:
            place, other = places[spec.name], places.get(record.layout.tensors[entry.index].name)
            if other is not None and memory.address(place) != memory.address(other):
                place[...] = other


def on_base(record: Record) -> OnBase:
    """What the record stands on, for one whose `check` has passed."""
    assert record.base is not None, "check() saw to it"
    return record.base


def stored(record: Record, at: int, n: int, dtype: str) -> np.ndarray:
    """n bytes of the stored tensors as values, a copy."""
    return np.frombuffer(record.stored, np.uint8, n, at).copy().view(DTYPES[dtype])

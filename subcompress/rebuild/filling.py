"""Filling existing memory with a record's values, on any backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from subcompress.format.record import Factored, Fixed, Mixed, Piece, Record, Stored, Tied, Unchanged
from subcompress.operators.forms import NO_COORDINATES, Form, Seeded, chosen_values
from subcompress.operators.kernels import SeededRows, Segment
from subcompress.rebuild.backends.memory import HOST
from subcompress.tensors.layout import DTYPES, TensorSpec

if TYPE_CHECKING:
    from subcompress.base import OnBase
    from subcompress.rebuild.backends import Backend


class Filling:
    """Collects ranges of tensors to compute, then computes them together, each group's rows in one call.

    coordinates: those of each group, in the backend's memory.
    """

    def __init__(self, record: Record, backend: Backend, coordinates: list[Any]) -> None:
        self.record, self.backend, self.memory, self.coordinates = record, backend, backend.memory, coordinates
        self._segments: list[list[Segment]] = [[] for _ in record.groups]
        self._seeded: list[Segment] = []
        self._deferred: list[Callable[[], None]] = []
        self._based: list[tuple[Any, Any, np.ndarray]] = []  # where a sum goes, its values, and the base's

    def add(self, i: int, at: int, out: Any) -> None:
        """Request real numbers at .. at + len(out) of tensor i, which is computed, in `out`, flat and of the tensor's
        dtype."""
        spec, entry = self.record.layout.tensors[i], self.record.entries[i]
        pieces = self.record.pieces[i]
        if isinstance(entry, Factored):
            self._add_product(i, at, out)
            return
        if not isinstance(entry, Mixed):
            self._add(spec, pieces[0], at, out)
            return
        for item, first, places in self.record.patterns[i].places(at, len(out)):
            if isinstance(places, slice):
                self._add(spec, pieces[item], first, out[places])
                continue
            values = self.memory.empty((len(places),), spec.real_dtype)
            self._add(spec, pieces[item], first, values)
            self._deferred.append(partial(self.memory.scatter, out, places, values))

    def _add(self, spec: TensorSpec, piece: Piece, at: int, out: Any) -> None:
        """Request values at .. at + len(out) of a piece."""
        entry, n = piece.entry, len(out)
        if isinstance(entry, Fixed):
            self._add_start(spec, entry.start, piece.seeded + at, at, out)
            return
        first, segments = piece.row + at, self._segments[entry.group]
        if isinstance(entry.start, float) and not entry.based:
            segments.append(Segment(first, out, entry.scale, entry.start))
            return
        if (start := self._fused(entry.start, piece.seeded + at, out)) is not None:
            segments.append(Segment(first, out, entry.scale, start))
            return
        if self._in_place(entry.start, out):  # no sum of such numbers is subnormal
            self._add_start(spec, entry.start, piece.seeded + at, at, out)
            segments.append(Segment(first, out, entry.scale, out))
            return
        values = self.memory.empty((n,), "F32") if out.itemsize < 4 else out
        segments.append(Segment(first, values, entry.scale))
        if entry.based:
            self._based.append((out, values, require_base(self.record).reals(spec.name, at, n)))
            return
        start = self.memory.empty((n,), "F32" if isinstance(entry.start, Seeded) else spec.real_dtype)
        self._add_start(spec, entry.start, piece.seeded + at, at, start)
        self._deferred.append(lambda: self.memory.add_base(out, values, start))

    def factors(self, i: int, first: int = 0, last: int | None = None) -> list[Any]:
        """Request the factors of tensor i, float32: the right one, (rank, columns), and rows first .. last of the left
        one, (rows, rank)."""
        spec, entry = self.record.layout.tensors[i], self.record.entries[i]
        assert isinstance(entry, Factored), "only those have factors"
        last = spec.shape[0] if last is None else last
        if entry.sketched:
            return self._sketched(i, entry, first, last)
        right, left = entry.factors(spec)
        ranges = (right, 0, entry.rank), (left, first, last)
        found = []
        for (factor, lo, hi), piece in zip(ranges, self.record.pieces[i], strict=True):
            width = factor.shape[1]
            values = self.memory.empty(((hi - lo) * width,), factor.dtype)
            self._add(factor, piece, lo * width, values)
            found.append(values.reshape(hi - lo, width))
        return found

    def _sketched(self, i: int, entry: Factored, first: int, last: int) -> list[Any]:
        """Request the factors of a sketched tensor: R V, and rows first .. last of U."""
        spec, rank = self.record.layout.tensors[i], entry.rank
        u, v = require_base(self.record).directions(spec.name, rank)
        (middle,), (piece,) = entry.factors(spec), self.record.pieces[i]
        values = self.memory.empty((middle.size,), middle.dtype)
        self._add(middle, piece, 0, values)
        right, zeros = self.memory.empty((v.size,), "F32"), np.zeros(v.size, np.float32)
        core, held = values.reshape(rank, rank), self.memory.of(v)
        self._deferred.append(lambda: self.memory.add_product(right, zeros, core, held, 0))
        return [right.reshape(rank, -1), self.memory.of(u[first:last])]

    def _add_product(self, i: int, at: int, out: Any) -> None:
        """Request values at .. at + len(out) of a matrix of the base with factors."""
        spec = self.record.layout.tensors[i]
        columns = spec.shape[1]
        first, last = at // columns, -(-(at + len(out)) // columns)
        right, left = self.factors(i, first, last)
        base = require_base(self.record).reals(spec.name, at, len(out))
        skipped = at - first * columns
        self._deferred.append(lambda: self.memory.add_product(out, base, left, right, skipped))

    def _fused(self, start: Form, seeded: int, out: Any) -> SeededRows | None:
        """Return a start that the backend computes together with the rest, None if it must be added separately.

        The sum is then rounded as in float32, so float64 is excluded.
        """
        if not self.backend.seeds or not isinstance(start, Seeded) or out.dtype == np.float64:
            return None
        if not isinstance(start.center, float):
            return None
        return SeededRows(self.record.seeded_operator, seeded, start.scale, start.center)

    def _in_place(self, start: Form, out: Any) -> bool:
        """Return whether a start can be written first and the rest added to it in place."""
        plain = isinstance(start, Seeded) and isinstance(start.center, float)
        return plain and self.memory is HOST and out.dtype == np.float32

    def _add_start(self, spec: TensorSpec, start: Form, seeded: int, at: int, out: Any) -> None:
        """Request values at .. at + len(out) of a start; seeded: the number of the first among all seeded ones."""
        n = len(out)
        if not isinstance(start, Seeded):
            self.memory.put(out, chosen_values(start, at, n, spec.real_dtype))
        elif isinstance(start.center, float):
            self._seeded.append(Segment(seeded, out, start.scale, start.center))
        else:
            values = out if out.itemsize == 4 else self.memory.empty((n,), "F32")  # its sum is in float32
            center = self.memory.of(chosen_values(start.center, at, n, spec.real_dtype))
            self._seeded.append(Segment(seeded, values, start.scale))
            self._deferred.append(lambda: self.memory.add_base(out, values, center))

    def write(self) -> None:
        """Compute everything that was requested."""
        # The output may share memory with the base.
        written = {self.memory.address(out) for out, _, _ in self._based}
        based = [(out, values, b.copy() if HOST.address(b) in written else b) for out, values, b in self._based]
        if self._seeded:
            no_coordinates = self.memory.of(NO_COORDINATES)
            self.backend.fill(self.record.seeded_operator, no_coordinates, sorted(self._seeded, key=_first_row))
        for group, c, segments in zip(self.record.groups, self.coordinates, self._segments, strict=True):
            if segments:
                self.backend.fill(group.operator, c, sorted(segments, key=_first_row))
        for out, values, base in based:
            self.memory.add_base(out, values, base)
        for call in self._deferred:
            call()


def _first_row(segment: Segment) -> int:
    return segment.lo


def fill(record: Record, places: Mapping[str, Any], backend: Backend, *, unchanged: bool = True) -> None:
    """Write a record's tensors to `places`, name -> contiguous memory of the record's dtypes and shapes.

    Tensors without a place are skipped, and without `unchanged` those that are the base's too.
    """
    memory = backend.memory
    filling = Filling(record, backend, [memory.of(group.coordinates) for group in record.groups])
    for i, (spec, entry) in enumerate(zip(record.layout, record.entries, strict=True)):
        if not spec.size or spec.name not in places or isinstance(entry, Tied):
            continue
        place = places[spec.name]
        if isinstance(entry, Stored):
            at = record.stored_at[i]
            memory.put(place, stored_values(record, at, spec.nbytes, spec.dtype).reshape(spec.shape))
        elif not isinstance(entry, Unchanged):
            filling.add(i, 0, memory.reals(place))
        elif unchanged:
            memory.put(place, require_base(record).values(spec.name))
    filling.write()
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Tied) and spec.name in places:
            place, other = places[spec.name], places.get(record.layout.tensors[entry.index].name)
            if other is not None and memory.address(place) != memory.address(other):
                place[...] = other


def require_base(record: Record) -> OnBase:
    """Return the base of a record whose check has passed and that has one."""
    assert record.base is not None, "check() requires a base"
    return record.base


def stored_values(record: Record, at: int, n: int, dtype: str) -> np.ndarray:
    """Copy n bytes of the stored tensors as values of a dtype."""
    return np.frombuffer(record.stored, np.uint8, n, at).copy().view(DTYPES[dtype])

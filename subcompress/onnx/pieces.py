"""Nodes for tensors that the file describes by rules: start values, sums of starts and products, and mixed tensors.

The order of rounding is that of docs/FORMAT.md, section 10. Starts are rounded to float32 or the tensor's dtype. Sums
are rounded once: in float64 for the tensors that need it (`is_wide`), otherwise in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from subcompress.format.record import Coded, Fixed, Mixed, Piece, Record
from subcompress.onnx.nodes import Nodes
from subcompress.operators.forms import Chosen, Pattern, Ramp, Seeded, Table
from subcompress.tensors.layout import DTYPES, TensorSpec
from subcompress.tensors.rounding import TINY, rounded

if TYPE_CHECKING:
    from subcompress.onnx.on_base import ExternalBase

SHORT = 32
"""Ramps with at most this many values are written out."""

APART = 64
"""The most runs of a mixed tensor that are concatenated one by one. More runs are built by their period."""

NARROW = {"F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}

Key = tuple[int, int, bool]
"""A product that a group computes: the indices of its tensor and piece, and whether it belongs to the start."""


def is_wide(spec: TensorSpec, own: tuple[Piece, ...]) -> bool:
    """Return whether a tensor's values are float64 in the graph, because float32 cannot hold them."""
    return spec.dtype == "F64" and any(
        isinstance(p.entry.start, (Table, Ramp))
        or (isinstance(p.entry, Coded) and (p.entry.based or isinstance(p.entry.start, Seeded)))
        for p in own
    )


def repeats(entry: object, spec: TensorSpec) -> bool:
    """Whether nodes describe a tensor in fewer bytes than its values take. They do not for a fixed tensor with few
    values, or one with a table of the same length."""
    if not isinstance(entry, Fixed):
        return isinstance(entry, (Coded, Mixed))
    length = entry.start.period if isinstance(entry.start, Table) else SHORT
    return spec.reals > 2 * max(length, SHORT)


class Pieces:
    """Makes the tensors of a record from its products, scale * integer, which are flat.

    The products of plain tensors already include the starts. base: the base of the record, for tensors that start
    there.
    """

    def __init__(
        self, record: Record, nodes: Nodes, products: Mapping[Key, str], base: ExternalBase | None = None
    ) -> None:
        self.record, self.nodes, self.products, self.base = record, nodes, products, base

    def tensor(self, i: int) -> str:
        """Return the values of tensor i, flat: float64 if it is wide, else float32."""
        spec, own, n = self.record.layout.tensors[i], self.record.pieces[i], self.nodes
        wide = is_wide(spec, own)
        if not spec.reals:
            return self._chosen(0.0, 0, spec.real_dtype, wide, normal=False)
        made = [self._piece(i, j, piece, wide) for j, piece in enumerate(own)]
        if i in self.record.patterns:
            return self._mixed(self.record.patterns[i], made, wide)
        is_constant = made[0] in {c.name for c in n.constants}
        return str(n("Identity", made[0])) if is_constant else made[0]

    def _piece(self, i: int, j: int, piece: Piece, wide: bool) -> str:
        n, entry = self.nodes, piece.entry
        if isinstance(entry, Coded) and entry.plain:
            return self._as(wide, self.products[i, j, False])
        if isinstance(entry, Coded) and entry.based:
            assert self.base is not None, "unfold() saw to it"
            start = self.base.start(self.record.layout.tensors[i], wide)
            return str(n("Add", start, self._as(wide, self.products[i, j, False])))
        dtype = self.record.layout.tensors[i].real_dtype
        coded = isinstance(entry, Coded)
        if isinstance(entry.start, Seeded):
            start = self._as(wide, self._seeded(entry.start, self.products[i, j, True], piece.reals, dtype))
        else:
            start = self._chosen(entry.start, piece.reals, dtype, wide, normal=coded and not wide)
        if not coded:
            return start
        return str(n("Add", start, self._as(wide, self.products[i, j, False])))

    def _as(self, wide: bool, value: str) -> str:
        return str(self.nodes("Cast", value, to=TensorProto.DOUBLE)) if wide else value

    def _seeded(self, start: Seeded, product: str, reals: int, dtype: str) -> str:
        if isinstance(start.center, float):
            return product
        return str(self.nodes("Add", self._chosen(start.center, reals, dtype, wide=False, normal=True), product))

    def _chosen(self, form: Chosen, reals: int, dtype: str, wide: bool, normal: bool) -> str:
        """The first values of a start. normal: replace values below 2^-126 in absolute value by zero."""
        n = self.nodes
        if isinstance(form, float):
            return str(n("Expand", (np.float64 if wide else np.float32)(form), [reals]))
        length = min(form.period, reals)
        values = form.values(0, length)
        as_float = values if wide else rounded(values, DTYPES["F32"])
        small = normal & (np.abs(as_float) < TINY)
        if isinstance(form, Ramp) and length > SHORT:
            value = self._ramp(form, length, wide)
            if small.any():
                value = n("Where", n("Less", n("Abs", value), np.float32(TINY)), np.float32(0), value)
        elif dtype == "F16":
            value = n("Cast", np.where(small, np.float16(0), values), to=TensorProto.FLOAT)
        else:
            value = n.constant(np.where(small, as_float.dtype.type(0), as_float))
        return self._repeated(value, length, reals)

    def _ramp(self, form: Ramp, length: int, wide: bool) -> str:
        n = self.nodes
        k = n("Cast", n("Range", 0, length, 1), to=TensorProto.DOUBLE)
        # A constant zero would be optimized away, and -0.0 would stay where it becomes +0.0.
        first = np.float64(form.first) if form.first or np.signbit(form.first) else n("Cast", 0, to=TensorProto.DOUBLE)
        value = n("Add", n("Mul", k, np.float64(form.step)), first)
        if not wide:
            value = n("Cast", value, to=TensorProto.FLOAT)
        if form.dtype in NARROW:
            value = n("Cast", n("Cast", value, to=NARROW[form.dtype]), to=TensorProto.FLOAT)
        return str(value)

    def _repeated(self, value: str, length: int, reals: int) -> str:
        n = self.nodes
        if length < reals:
            value = n("Tile", value, [-(-reals // length)])
        return str(n("Slice", value, [0], [reals])) if reals % length else value

    def _mixed(self, pattern: Pattern, made: list[str], wide: bool) -> str:
        """The values of a mixed tensor: its runs concatenated, or, if there are many, one period after the other."""
        n, size, period = self.nodes, pattern.size, pattern.period
        if len(pattern.runs) * (size // period + 1) <= APART:
            return self._concatenated(unrolled(pattern), made, 0)
        count = -(-size // period)
        per_period = pattern.before(period)
        blocks = []
        for value, each, held in zip(made, per_period, pattern.counts, strict=True):
            if missing := each * count - held:
                zero = (np.float64 if wide else np.float32)(0)
                value = n("Concat", value, n("Expand", zero, [missing]), axis=0)
            blocks.append(n("Reshape", value, [count, each]))
        if 4 * len(pattern.runs) <= period:
            values = self._concatenated(merged(pattern.runs), blocks, 1)
        else:
            values = n("Gather", n("Concat", *blocks, axis=1), columns(pattern), axis=1)
        values = n("Reshape", values, [-1])
        return str(n("Slice", values, [0], [size]) if count * period > size else values)

    def _concatenated(self, runs: list[tuple[int, int]], made: list[str], axis: int) -> str:
        """Concatenate the values of items, in runs along an axis."""
        n = self.nodes
        left: list[list[str]] = []
        for item, value in enumerate(made):
            lengths = [length for k, length in runs if k == item]
            apart = n("Split", value, lengths, outputs=len(lengths), axis=axis) if len(lengths) > 1 else [value]
            left.append(apart[::-1])
        return str(n("Concat", *[left[item].pop() for item, _ in runs], axis=axis))


def merged(runs: Any) -> list[tuple[int, int]]:
    """Merge adjacent runs of the same item."""
    return [(item, sum(length for _, length in same)) for item, same in groupby(runs, key=lambda run: run[0])]


def unrolled(pattern: Pattern) -> list[tuple[int, int]]:
    """Return the merged runs of all values; there are few."""
    found, left = [], pattern.size
    while left:
        for item, length in pattern.runs:
            if taken := min(length, left):
                found.append((item, taken))
            left -= taken
    return merged(found)


def columns(pattern: Pattern) -> list[int]:
    """Return where the values of one period are when they are ordered by item."""
    items = np.repeat([item for item, _ in pattern.runs], [length for _, length in pattern.runs])
    order = np.argsort(items, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    found: list[int] = places.tolist()
    return found

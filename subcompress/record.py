"""What a file holds, in memory: fit makes a Record, the format writes and reads it, the backends expand it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from subcompress.base import OnBase
from subcompress.errors import SubcompressError
from subcompress.facts import Facts
from subcompress.layout import CODED_DTYPES, Layout, TensorSpec
from subcompress.operators import ExactOperator
from subcompress.rounding import finite

STATISTICS_BITS = 7
"""Running statistics, integers one by one, have as many bits or more; weights one by one have fewer as a rule."""

LIMIT = 1 << 16
"""Integers of a weight stay below this in absolute value: times a bfloat16 scale they are exact in float32."""

MIN_SCALE_EXPONENT, MAX_SCALE_EXPONENT = -60, 30
LOWEST_SCALE, HIGHEST_SCALE = 2.0**MIN_SCALE_EXPONENT, 2.0 ** (MAX_SCALE_EXPONENT + 1)
"""Scales lie in [2^-60, 2^31): no product with an integer below 2^16 is subnormal or infinite."""


SMALLEST_START = 2.0**-126
"""Constant starts are zero or normal float32 values."""


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors that share coordinates: an operator over their D weights, and z as (d,) integers of so many bits."""

    operator: ExactOperator
    bits: int
    coordinates: np.ndarray

    @property
    def one_by_one(self) -> bool:
        """Whether every value has a coordinate of its own: quantised values, no subspace."""
        return self.operator.block == 1 and self.operator.d == self.operator.D


@dataclass(frozen=True)
class Coded:
    """theta = start + scale * integer; `group` indexes the record's groups; start is one constant for the tensor, or,
    based, the values of the base."""

    scale: float
    group: int = 0
    start: float = 0.0
    based: bool = False


@dataclass(frozen=True)
class Stored:
    """The values themselves travel in the file: buffers, integers."""


@dataclass(frozen=True)
class Kept:
    """The base's values, as they are."""


@dataclass(frozen=True)
class Same:
    """A tied tensor: all of it is what tensor number `index` of the layout, an earlier one, is."""

    index: int


Entry = Coded | Stored | Same | Kept


@dataclass(frozen=True, eq=False)
class Record:
    """entries: one a tensor of the layout; stored: dense little-endian bytes of the Stored ones, in layout order.

    base: what it stands on, None for most; its tensors come first in the layout, in their order.
    digest: 16 bytes over the rebuilt tensors (subcompress.digest), empty before it is known.
    test_accuracy: on the test split, when it was measured.
    """

    seed: int
    layout: Layout
    groups: tuple[Group, ...]
    entries: tuple[Entry, ...]
    stored: bytes = b""
    facts: Facts = field(default_factory=Facts)
    test_accuracy: float | None = None
    digest: bytes = b""
    base: OnBase | None = None

    @property
    def d(self) -> int:
        """Coordinates that were trained."""
        return sum(g.operator.d for g in self.trained)

    @property
    def D(self) -> int:
        """Weights that they span: real numbers, two a complex weight."""
        return sum(g.operator.D for g in self.trained)

    @property
    def trained(self) -> list[Group]:
        """Groups of weights. Those of running statistics, values one by one too, come after the first."""
        return trained(self.groups)

    @property
    def sizes(self) -> list[int]:
        """Coded real numbers of each group."""
        return group_sizes(self.layout, self.entries, len(self.groups))

    @property
    def firsts(self) -> list[int]:
        """Where each tensor begins: the first row of its group, or the first byte of `stored`; a tied one where the
        tensor that it is begins; zero for what the base holds."""
        rows, stored = [0] * len(self.groups), 0
        found: list[int] = []
        for spec, entry in zip(self.layout, self.entries, strict=True):
            if isinstance(entry, Coded):
                found.append(rows[entry.group])
                rows[entry.group] += spec.reals
            elif isinstance(entry, Same):
                found.append(found[entry.index])
            elif isinstance(entry, Kept):
                found.append(0)
            else:
                found.append(stored)
                stored += spec.nbytes
        return found

    def check(self) -> None:
        """Raise SubcompressError where exact regeneration would not be assured."""
        for g, size in zip(self.groups, self.sizes, strict=True):
            if size != g.operator.D or len(g.coordinates) != g.operator.d:
                raise SubcompressError(
                    f"a group's tensors, operator and coordinates agree; given {size} weights, an operator of "
                    f"{g.operator.D} x {g.operator.d} and {len(g.coordinates)} coordinates: fit again"
                )
            if (peak := g.operator.peak(g.coordinates)) >= LIMIT:
                raise SubcompressError(
                    f"the integers that one weight adds stay below {LIMIT} in sum; these reach {peak}: "
                    "lower d, the bits or the number of rows a block"
                )
        for i, (spec, entry) in enumerate(zip(self.layout, self.entries, strict=True)):
            if isinstance(entry, Kept) or (isinstance(entry, Coded) and entry.based):
                self._check_based(spec, isinstance(entry, Coded))
            if isinstance(entry, Coded):
                _check_coded(str(spec), spec.dtype, entry)
            elif isinstance(entry, Same):
                self._check_same(i, spec, entry)

    def _check_based(self, spec: TensorSpec, coded: bool) -> None:
        if self.base is None or spec.name not in self.base:
            raise SubcompressError(
                f"a tensor that starts at the base's values is in the base; {spec} is not: fit again"
            )
        if coded and not finite(self.base.reals(spec.name)):
            raise SubcompressError(f"coordinates are added to finite values; the base's {spec} holds nan or inf")

    def _check_same(self, at: int, spec: TensorSpec, entry: Same) -> None:
        if not 0 <= entry.index < at or isinstance(self.entries[entry.index], Same):
            raise SubcompressError(f"a tied tensor is that of an earlier one; {spec} is not: fit again")
        other = self.layout.tensors[entry.index]
        if (other.dtype, other.shape) != (spec.dtype, spec.shape):
            raise SubcompressError(f"tied tensors have one dtype and shape; {spec} and {other} do not: fit again")


def trained(groups: tuple[Group, ...]) -> list[Group]:
    """See `Record.trained`."""
    return [g for i, g in enumerate(groups) if i == 0 or not g.one_by_one or g.bits < STATISTICS_BITS]


def group_sizes(layout: Layout, entries: tuple[Entry, ...], groups: int) -> list[int]:
    """Coded real numbers of each group."""
    sizes = [0] * groups
    for spec, entry in zip(layout, entries, strict=True):
        if isinstance(entry, Coded):
            sizes[entry.group] += spec.reals
    return sizes


def _check_coded(tensor: str, dtype: str, entry: Coded) -> None:
    if dtype not in CODED_DTYPES:
        raise SubcompressError(f"coded tensors are of {', '.join(CODED_DTYPES)}; {tensor} is not: store it instead")
    normal = SMALLEST_START <= abs(entry.start) < math.inf
    if not (normal or entry.start == 0) or entry.start != np.float32(entry.start):
        raise SubcompressError(f"a constant start is zero or a normal float32; {tensor} starts at {entry.start}")
    if not LOWEST_SCALE <= entry.scale < HIGHEST_SCALE or entry.scale != bfloat16(entry.scale):
        raise SubcompressError(
            f"a scale is a bfloat16 value in [2^{MIN_SCALE_EXPONENT}, 2^{MAX_SCALE_EXPONENT + 1}); "
            f"{tensor} has {entry.scale}"
        )


def bfloat16(x: float) -> float:
    """x rounded to the nearest bfloat16, ties to even."""
    bits = int(np.float32(x).view(np.uint32))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(np.uint32(bits).view(np.float32))

"""The contents of a file in memory: fit makes a Record, the format encodes it, the backends expand it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from subcompress.base import OnBase
from subcompress.errors import SubcompressError
from subcompress.format.facts import Facts
from subcompress.operators import ExactOperator, HadamardBlocks
from subcompress.operators.forms import Form, Pattern, Ramp, Seeded, counts_of, seeded_integers, table_of
from subcompress.operators.sketch import MAX_SIDE
from subcompress.tensors.layout import CODED_DTYPES, DTYPES, Layout, TensorSpec
from subcompress.tensors.rounding import finite

STATISTICS_BITS = 7
"""The fewest bits of quantized running statistics. Quantized weights usually have fewer."""

LIMIT = 1 << 16
"""The bound on the absolute value of a weight's integer: times a bfloat16 scale it is exact in float32."""

MIN_SCALE_EXPONENT, MAX_SCALE_EXPONENT = -60, 30
LOWEST_SCALE, HIGHEST_SCALE = 2.0**MIN_SCALE_EXPONENT, 2.0 ** (MAX_SCALE_EXPONENT + 1)
"""The range of scales, [2^-60, 2^31), in which no product with an integer below 2^16 is subnormal or infinite."""


FACTORED_DTYPES = ("F32", "F16", "BF16", "F64")
"""The dtypes of matrices that may have factors."""

MAX_RANK = 1 << 8
"""The highest rank of factors."""

MAX_FACTOR = 1 << 24
"""The most values of a factor."""

RAMP_LIMIT = 1e30
"""The bound on the absolute value of a ramp's numbers."""

SMALLEST_START = 2.0**-126
"""The smallest constant start other than zero: the smallest normal float32 value."""


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors that share coordinates: an operator over their D weights, and (d,) integer coordinates of `bits` bits."""

    operator: ExactOperator
    bits: int
    coordinates: np.ndarray

    @property
    def one_by_one(self) -> bool:
        """Whether every value has its own coordinate: quantized values, no subspace."""
        return self.operator.block == 1 and self.operator.d == self.operator.D


@dataclass(frozen=True)
class Coded:
    """An entry with theta = start + scale * integer.

    group: index of the group; start: a form, where a number is one constant for all values; based: the values start at
    the base's instead.
    """

    scale: float
    group: int = 0
    start: Form = 0.0
    based: bool = False

    @property
    def plain(self) -> bool:
        """Whether all values start at one constant."""
        return isinstance(self.start, float) and not self.based


@dataclass(frozen=True)
class Fixed:
    """An entry with theta = start, on which no coordinate acts."""

    start: Form = 0.0


@dataclass(frozen=True)
class Mixed:
    """An entry whose values belong to different items, as the runs say.

    runs: (item, length), repeated until all values have an item; a complex value counts as two.
    """

    items: tuple[Coded | Fixed, ...]
    runs: tuple[tuple[int, int], ...]

    @cached_property
    def period(self) -> int:
        """The number of values after which the runs repeat."""
        return int(table_of(self.runs)[:, 1].sum())

    @cached_property
    def is_valid(self) -> bool:
        """Whether the runs name every item and none is empty."""
        items, lengths = table_of(self.runs).T
        return np.array_equal(np.unique(items), np.arange(len(self.items))) and bool((lengths >= 1).all())

    @cached_property
    def _counts(self) -> dict[int, list[int]]:
        return {}

    def counts(self, size: int) -> list[int]:
        """Return how many of `size` real numbers belong to each item; cached, because many tensors may share the
        entry."""
        if size not in self._counts:
            self._counts[size] = counts_of(self.runs, len(self.items), size)
        return self._counts[size]


@dataclass(frozen=True)
class Factored:
    """An entry on a base with theta = base + left right, of a matrix: two factors of a low rank.

    items: how the values of the right factor, (rank, columns), and of the left one, (rows, rank), are made; float32. Of
    a sketched entry the one item is R, (rank, rank): the left factor is U and the right one R V, where U and V are
    directions of the base's matrix (`subcompress.operators.sketch`).
    """

    rank: int
    items: tuple[Coded | Fixed, ...]
    sketched: bool = False

    @property
    def kind(self) -> str:
        """What --act-on calls it."""
        return "sketch" if self.sketched else "lora"

    def factors(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """Return what `items` make of a tensor, in their order. Raises SubcompressError for one without such."""
        if spec.dtype not in FACTORED_DTYPES or len(spec.shape) != 2:
            raise SubcompressError(
                f"{spec} cannot have factors, because only tensors of two axes, of {', '.join(FACTORED_DTYPES)}, can"
            )
        check_rank(self.rank, spec, self.sketched)
        rows, columns = spec.shape
        shapes = ((self.rank, self.rank),) if self.sketched else ((self.rank, columns), (rows, self.rank))
        return tuple(TensorSpec(f"{spec.name}\0{k}", "F32", shape) for k, shape in enumerate(shapes))


@dataclass(frozen=True)
class Stored:
    """An entry whose values are in the file: buffers, integers.

    same: the number of an earlier stored tensor with the same values, which are then stored once.
    """

    same: int | None = None


@dataclass(frozen=True)
class Unchanged:
    """An entry whose values are the base's."""


@dataclass(frozen=True)
class Tied:
    """A tied tensor: the same as tensor number `index` of the layout, an earlier one."""

    index: int


Entry = Coded | Fixed | Mixed | Factored | Stored | Tied | Unchanged


@dataclass(frozen=True)
class Piece:
    """The values of a tensor that share an entry.

    row: if coded, their first row in their group; seeded: the number of the first among all seeded starts of the file.
    """

    entry: Coded | Fixed
    reals: int
    row: int
    seeded: int


def pieces_of(spec: TensorSpec, entry: Entry) -> Iterator[tuple[Coded | Fixed, int]]:
    """Yield the entries of a tensor's pieces with their numbers of values; nothing for one that is not computed."""
    if isinstance(entry, Mixed):
        yield from zip(entry.items, entry.counts(spec.reals), strict=True)
    elif isinstance(entry, Factored):
        yield from zip(entry.items, (factor.reals for factor in entry.factors(spec)), strict=True)
    elif isinstance(entry, (Coded, Fixed)):
        yield entry, spec.reals


@dataclass(frozen=True, eq=False)
class Record:
    """The contents of a packed file.

    entries: one for each tensor of the layout; stored: dense little-endian bytes of the Stored ones, in layout order.

    base: the base that the file was made on, None for most; its tensors come first in the layout, in their order.
    digest: 16 bytes over the rebuilt tensors (subcompress.tensors.digest), empty before it is known. test_accuracy:
    accuracy on the test split, None if it was not measured.
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
        """The number of trained coordinates."""
        return sum(g.operator.d for g in self.trained)

    @property
    def D(self) -> int:
        """The number of weights that they span, in real numbers: a complex weight is two."""
        return sum(g.operator.D for g in self.trained)

    @property
    def trained(self) -> list[Group]:
        """The groups of weights, without those of quantized running statistics, which are never the first."""
        return trained(self.groups)

    @property
    def sizes(self) -> list[int]:
        """The number of coded real numbers in each group."""
        return group_sizes(self.layout, self.entries, len(self.groups))

    @cached_property
    def pieces(self) -> list[tuple[Piece, ...]]:
        """The pieces of each tensor: one, several if it is mixed, none if it is not computed."""
        rows, seeded = [0] * len(self.groups), 0
        found: list[tuple[Piece, ...]] = []
        for spec, entry in zip(self.layout, self.entries, strict=True):
            own = []
            for part, reals in pieces_of(spec, entry):
                row = rows[part.group] if isinstance(part, Coded) else 0
                own.append(Piece(part, reals, row, seeded))
                if isinstance(part, Coded):
                    rows[part.group] += reals
                seeded += reals if isinstance(part.start, Seeded) else 0
            found.append(tuple(own))
        return found

    @cached_property
    def patterns(self) -> dict[int, Pattern]:
        """The pattern of each mixed tensor, by its number."""
        pairs = enumerate(zip(self.layout, self.entries, strict=True))
        return {i: Pattern(entry.runs, spec.reals) for i, (spec, entry) in pairs if isinstance(entry, Mixed)}

    @cached_property
    def seeded_operator(self) -> HadamardBlocks:
        """The operator whose rows are the integers of all seeded starts; needs at least one."""
        reals = sum(p.reals for own in self.pieces for p in own if isinstance(p.entry.start, Seeded))
        return seeded_integers(self.seed, reals)

    @cached_property
    def stored_at(self) -> dict[int, int]:
        """The offset in `stored` of each stored tensor, by its number."""
        at = 0
        found: dict[int, int] = {}
        for i, (spec, entry) in enumerate(zip(self.layout, self.entries, strict=True)):
            if isinstance(entry, Stored):
                found[i] = at if entry.same is None else found[entry.same]
                at += spec.nbytes if entry.same is None else 0
        return found

    def check(self) -> None:
        """Raise SubcompressError unless exact regeneration is assured."""
        for g, size in zip(self.groups, self.sizes, strict=True):
            if size != g.operator.D or len(g.coordinates) != g.operator.d:
                raise SubcompressError(
                    f"the tensors, operator and coordinates of a group do not agree; got {size} weights, an "
                    f"operator of {g.operator.D} x {g.operator.d} and {len(g.coordinates)} coordinates: fit "
                    "again"
                )
        check_peaks(self.groups)
        tables: Tables = set()
        checked: set[tuple[int, str]] = set()  # entries by identity and dtype: many tensors share one
        for i, (spec, entry) in enumerate(zip(self.layout, self.entries, strict=True)):
            if isinstance(entry, (Unchanged, Factored)) or (isinstance(entry, Coded) and entry.based):
                self._check_based(spec, not isinstance(entry, Unchanged))
            if isinstance(entry, Tied):
                self._check_same(i, spec, entry.index)
            elif isinstance(entry, Stored) and entry.same is not None:
                self._check_same(i, spec, entry.same)
            elif isinstance(entry, Mixed):
                _check_mixed(spec, entry)
            if (key := (id(entry), spec.dtype)) not in checked:
                checked.add(key)
                for part in parts_of(entry):
                    check_piece(spec, part, tables, entry)

    def _check_based(self, spec: TensorSpec, coded: bool) -> None:
        if self.base is None or spec.name not in self.base:
            raise SubcompressError(f"{spec} starts at the base's values, but the base lacks it: fit again")
        if coded and not finite(self.base.reals(spec.name)):
            raise SubcompressError(f"the base's {spec} holds nan or inf, to which coordinates cannot be added")

    def _check_same(self, at: int, spec: TensorSpec, index: int) -> None:
        check_tie(self.entries, at, spec)
        other = self.layout.tensors[index]
        if (other.dtype, other.shape) != (spec.dtype, spec.shape):
            raise SubcompressError(f"{spec} and {other} are tied, but their dtypes or shapes differ: fit again")


Tables = set[tuple[int, str]]
"""Tables that were already checked, by the identity of their bytes and the dtype; many tensors may share one."""


def parts_of(entry: Entry) -> tuple[Coded | Fixed, ...]:
    """Return the entries of a tensor's pieces; none for one that is not computed."""
    return (
        entry.items if isinstance(entry, (Mixed, Factored)) else (entry,) if isinstance(entry, (Coded, Fixed)) else ()
    )


def check_peaks(groups: tuple[Group, ...]) -> None:
    """Raise SubcompressError if a weight's integer may exceed what is exact."""
    for g in groups:
        if g.operator.peak_at_most(int(np.abs(g.coordinates).max(initial=0))) < LIMIT:
            continue
        if (peak := g.operator.peak(g.coordinates)) >= LIMIT:
            raise SubcompressError(
                f"the integers that are added for one weight must stay below {LIMIT} in sum; these reach "
                f"{peak}: lower d, the bits or the rows of a block"
            )


def check_tie(entries: tuple[Entry, ...], at: int, what: object) -> None:
    """Raise SubcompressError unless tensor number `at`, called `what`, is tied to an earlier one that is not itself
    tied."""
    entry = entries[at]
    index = entry.index if isinstance(entry, Tied) else entry.same if isinstance(entry, Stored) else None
    first = entries[index] if index is not None and 0 <= index < at else None
    kind = Stored if isinstance(entry, Stored) else Entry
    is_copy = isinstance(first, Stored) and first.same is not None and kind is Stored
    if not isinstance(first, kind) or isinstance(first, Tied) or is_copy:
        raise SubcompressError(f"{what} must be tied to an earlier tensor: fit again")


def trained(groups: tuple[Group, ...]) -> list[Group]:
    """Return the groups of weights; see `Record.trained`."""
    return [g for i, g in enumerate(groups) if i == 0 or not g.one_by_one or g.bits < STATISTICS_BITS]


def group_sizes(layout: Layout, entries: tuple[Entry, ...], groups: int) -> list[int]:
    """Return the number of coded real numbers in each group."""
    sizes = [0] * groups
    for spec, entry in zip(layout, entries, strict=True):
        for part, reals in pieces_of(spec, entry):
            if isinstance(part, Coded):
                sizes[part.group] += reals
    return sizes


def _check_mixed(spec: TensorSpec, entry: Mixed) -> None:
    if not entry.is_valid or entry.period > spec.reals:
        raise SubcompressError(
            f"the runs of {spec} must name every item and fit into the tensor; they do not: fit again"
        )
    if any(isinstance(item, Coded) and item.based for item in entry.items):
        raise SubcompressError(f"{spec} is a tensor of the base and cannot be mixed: fit again")


def check_rank(rank: int, spec: TensorSpec, sketched: bool = False) -> None:
    """Raise SubcompressError for a rank that the factors of a matrix cannot have."""
    if not 1 <= rank <= MAX_RANK:
        raise SubcompressError(f"a rank must be between 1 and {MAX_RANK}; got {rank}: give another")
    if rank > min(spec.shape):
        raise SubcompressError(
            f"the rank {rank} is larger than the smaller side of {spec.name}, "
            f"{' x '.join(map(str, spec.shape))}: give a lower one"
        )
    if sketched and max(spec.shape) > MAX_SIDE:
        raise SubcompressError(
            f"a sketch takes a matrix of at most {MAX_SIDE} rows and columns; {spec.name} has "
            f"{max(spec.shape)}: give lora"
        )
    if rank * max(spec.shape) > MAX_FACTOR:
        raise SubcompressError(
            f"a factor may have at most {MAX_FACTOR} values; with the rank {rank}, one of {spec.name} has "
            f"{rank * max(spec.shape)}: give a lower rank"
        )


def check_piece(spec: TensorSpec, part: Coded | Fixed, tables: Tables, entry: Entry | None = None) -> None:
    """Raise SubcompressError for a piece that is invalid in a tensor of this dtype. entry: the tensor's."""
    if isinstance(entry, Factored):
        if isinstance(part, Coded) and part.based:
            raise SubcompressError(f"a factor of {spec} starts at the base, which factors cannot: fit again")
        spec = entry.factors(spec)[0]
    if spec.dtype not in CODED_DTYPES:
        raise SubcompressError(
            f"{spec} cannot be coded, because its dtype is none of {', '.join(CODED_DTYPES)}: store it instead"
        )
    check_start(spec, part, tables)
    start = part.start.center if isinstance(part.start, Seeded) else part.start
    if not isinstance(start, float) and start.dtype != spec.real_dtype:
        raise SubcompressError(f"the table of {spec} has values of another dtype than the tensor: fit again")


def check_start(spec: object, part: Coded | Fixed, tables: Tables) -> None:
    """Raise SubcompressError for an invalid start or scale. spec: the tensor, for the message."""
    if isinstance(part, Coded):
        _check_scale(spec, part.scale)
    start = part.start
    if isinstance(start, Seeded):
        _check_scale(spec, start.scale)
        start = start.center
    if isinstance(start, float):
        normal = SMALLEST_START <= abs(start) < math.inf
        if not (normal or start == 0) or start != np.float32(start):
            raise SubcompressError(f"a constant start must be zero or a normal float32; {spec} starts at {start}")
        if part.start == 0 and math.copysign(1, start) < 0 and isinstance(part, Fixed):
            raise SubcompressError(f"{spec} is fixed at -0.0, which a constant start cannot be: make it a table")
        return
    if start.period < 1:
        raise SubcompressError(f"the table or ramp of {spec} has no value: fit again")
    if isinstance(start, Ramp):
        ends = (start.first, start.step, start.first + start.step * start.period)
        if not all(math.isfinite(x) and abs(x) < RAMP_LIMIT for x in ends):
            raise SubcompressError(f"the ramp of {spec} has numbers of {RAMP_LIMIT:g} or more: fit again")
    elif (id(start.data), start.dtype) not in tables:
        if len(start.data) % DTYPES[start.dtype].itemsize or not finite(start.values(0, start.period)):
            raise SubcompressError(f"the table of {spec} holds nan or inf: fit again")
        tables.add((id(start.data), start.dtype))


def _check_scale(spec: object, scale: float) -> None:
    if not LOWEST_SCALE <= scale < HIGHEST_SCALE or scale != bfloat16(scale):
        raise SubcompressError(
            f"a scale must be a bfloat16 value in [2^{MIN_SCALE_EXPONENT}, 2^{MAX_SCALE_EXPONENT + 1}); {spec} "
            f"has {scale}"
        )


def bfloat16(x: float) -> float:
    """Round x to the nearest bfloat16, ties to even."""
    bits = int(np.float32(x).view(np.uint32))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return float(np.uint32(bits).view(np.float32))

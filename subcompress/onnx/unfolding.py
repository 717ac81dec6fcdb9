"""Self-unfolding graphs: a record's tensors computed from its seed and coordinates by standard ONNX operators.

The graph spells out docs/FORMAT.md, sections 8 to 10, in operators that ONNX Runtime folds to constants when a
session starts. Folding runs node by node on one thread and keeps every intermediate value for a while, so few nodes
touch values as large as the weights; small groups are spelled with the fewest nodes instead.

Integers stay below 2^63, unsigned ones below 2^64, so nothing depends on how a runtime overflows. Matrix products of
float32 values are of integers whose sums stay below 2^16: exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from onnx import TensorProto

from subcompress.errors import SubcompressError
from subcompress.format.codec import MIN_BITS
from subcompress.format.record import Coded, Group, Record
from subcompress.onnx.nodes import DOMAIN, Nodes
from subcompress.onnx.on_base import ExternalBase
from subcompress.onnx.pieces import Key, Pieces
from subcompress.operators import HadamardBlocks, ScatteredBlocks, philox, walsh
from subcompress.operators.forms import NO_COORDINATES, Seeded
from subcompress.operators.walsh import sequency

LARGE = 1 << 20
"""In groups with at least this many values, additional nodes save work and memory."""

MOST = 1 << 28
"""The most values of a group: ONNX Runtime since 1.26 folds nothing above 1 GiB."""

SPELLED = HadamardBlocks.name, ScatteredBlocks.name
"""Operators for which this module can write nodes."""

PACKING = 150
"""Several coordinates are stored together only if that saves at least this many bytes."""

SIGNS = np.array([1, -1], np.float32)
MASK32 = 0xFFFFFFFF


def unfold(record: Record, nodes: Nodes, wanted: Collection[str], base: ExternalBase | None = None) -> dict[str, str]:
    """Add nodes that compute the wanted coded, fixed and mixed tensors of the record.

    Returns the names of the tensors with those of the outputs. The outputs are flat: float32, or float64 if `is_wide`
    says so. Real and imaginary parts of complex numbers alternate.

    Raises SubcompressError for an operator that this module cannot write, for groups that are too large to fold, and
    for tensors that start at the values of a base.
    """
    walsh_matrices = Walsh(nodes)
    if base is None:
        _require_no_base(record, wanted)
    parts = [part for part in _parts(record, nodes, walsh_matrices, wanted) if part.wanted]
    for part in parts:
        part.joint = base is not None
    made: dict[Key, str] = {}
    if parts:
        spell_words(nodes, record.seed, parts)
        large = [part for part in parts if part.op.padded >= LARGE]
        small = [part for part in parts if part.op.padded < LARGE]
        values = [value for part in small for value in part.split(part.flatten(part.transform(part.begin())))]
        keys = [key for part in small + large for key in part.wanted]
        made = dict(zip(keys, values + _staged(nodes, large), strict=True))
    pieces = Pieces(record, nodes, made, base)
    return {
        spec.name: pieces.tensor(i) for i, spec in enumerate(record.layout) if spec.name in wanted and record.pieces[i]
    }


def _require_no_base(record: Record, wanted: Collection[str]) -> None:
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Coded) and entry.based and spec.name in wanted:
            raise SubcompressError(
                f"{spec.name} starts at the values of a base, which the graph does not have: leave unfolding out"
            )


def _parts(record: Record, nodes: Nodes, walsh_matrices: Walsh, wanted: Collection[str]) -> list[Part]:
    """The groups of the record, followed by that of the seeded numbers, if there are any."""
    parts = [Part(nodes, walsh_matrices, group, _spellable(group)) for group in record.groups]
    seeded: list[Rows] = []
    for i, spec in enumerate(record.layout):
        for j, piece in enumerate(record.pieces[i]):
            entry, start, asked = piece.entry, piece.entry.start, spec.name in wanted
            if isinstance(entry, Coded):
                constant = start if isinstance(start, float) else 0.0
                parts[entry.group].rows.append(Rows((i, j, False), piece.reals, entry.scale, constant, asked))
            if isinstance(start, Seeded):
                constant = start.center if isinstance(start.center, float) else 0.0
                seeded.append(Rows((i, j, True), piece.reals, start.scale, constant, asked))
    if any(rows.wanted and rows.reals for rows in seeded):
        group = Group(record.seeded_operator, MIN_BITS, NO_COORDINATES)
        parts.append(Part(nodes, walsh_matrices, group, _spellable(group), seeded))
    return parts


def _staged(nodes: Nodes, parts: list[Part]) -> list[str]:
    """The tensors of large groups, computed in stages, so that a runtime does not have to hold everything at once."""
    if not parts:
        return []
    of: dict[int, str] = {}

    def stage(step: Callable[[Part], str], over: list[Part]) -> None:
        if over:
            values = nodes.later(lambda: [step(part) for part in over])
            of.update(zip(map(id, over), values, strict=True))

    whole = [part for part in parts if part.op.m > 1]
    for part in whole:
        part.prepare()
    stage(Part.begin, parts)
    stage(lambda part: part.transform(of[id(part)]), whole)
    stage(lambda part: part.flatten(of[id(part)]), whole)
    return nodes.later(lambda: [value for part in parts for value in part.split(of[id(part)])])


def _spellable(group: Group) -> HadamardBlocks:
    op = group.operator
    if not isinstance(op, HadamardBlocks) or op.name not in SPELLED:
        raise SubcompressError(
            f"the operator {op.name} of this file cannot be unfolded, only {' and '.join(SPELLED)} can: leave "
            "unfolding out"
        )
    if op.padded > MOST:
        raise SubcompressError(
            f"ONNX Runtime folds at most 1 GiB at once, {MOST} weights per group; this file has a group of "
            f"{op.D}: unpack to .safetensors instead"
        )
    return op


def spell_words(nodes: Nodes, seed: int, parts: list[Part]) -> None:
    """Give each part the random words of its signs: (calls, 4, 1) uint64, of which only the low 32 bits count.

    Philox runs for all parts at once. A counter is (call, 0, stream, 0). A word times its multiplier is below 2^64, and
    one unsigned matrix product gives both products of a round, already exchanged.
    """
    n = nodes
    counters = [n("Mul", part.calls(), [1, 0]) for part in parts]
    for i, part in enumerate(parts):
        if part.op.group:
            counters[i] = n("Add", counters[i], [0, 2 * part.op.group])
    counter = counters[0] if len(counters) == 1 else n("Concat", *counters, axis=0)
    constants = (
        _u64([[0, philox.MULTIPLIERS[0]], [philox.MULTIPLIERS[1], 0]]),
        _u64(32),
        _u64(MASK32),
        MASK32,
        list(philox.WEYL),
    )
    n.function("Philox", 3 + len(constants), _philox_round)
    even, odd = n("Cast", counter, to=TensorProto.UINT64), _u64(0)  # words 0 and 2, words 1 and 3: (calls, 2) each
    key: Any = [seed & MASK32, seed >> 32]
    for _ in range(10):
        even, odd, key = n("Philox", even, odd, key, *constants, outputs=3, domain=DOMAIN)
    words = n("Gather", n("Concat", even, odd, axis=1), [[0], [2], [1], [3]], axis=1)
    sizes = [part.call_count for part in parts]
    each = [words] if len(parts) == 1 else n("Split", words, sizes, outputs=len(sizes), axis=0)
    for part, its in zip(parts, each, strict=True):
        part.words = its


def _philox_round(
    n: Nodes, even: str, odd: str, key: str, by: str, half: str, low: str, mask: str, weyl: str
) -> list[str]:
    """One round of Philox. Its inputs are words 0 and 2, words 1 and 3 (only the low 32 bits count), and the key, low
    word first. The constants are inputs too, because they would take more bytes inside a function."""
    products = n("MatMul", even, by)
    mixed = n("BitwiseXor", n("BitShift", products, half, direction="RIGHT"), odd)
    mixed = n("BitwiseXor", mixed, n("Cast", key, to=TensorProto.UINT64))
    return [n("BitwiseAnd", mixed, low), products, n("BitwiseAnd", n("Add", key, weyl), mask)]


@dataclass
class Walsh:
    """Hadamard matrices with columns in order of sequency. The nodes of each are written once."""

    nodes: Nodes
    _known: dict[int, tuple[str, str, str]] = field(default_factory=dict)

    def __call__(self, bits: int) -> tuple[str, str, str]:
        """The sequencies of H_(2^bits) and the columns that have them, both (2^bits, 1) int64, and H itself with its
        columns in that order, a symmetric float32 matrix."""
        n = self.nodes
        if bits not in self._known:
            along = n("Range", 0, 1 << bits, 1)
            s = n("Reshape", along, [-1, 1])
            # Bit i of the column of sequency s is bit bits - 1 - i of the Gray code of s.
            halves = [1 << (bits - 1 - i) for i in range(bits)]
            column_bits = n("BitwiseAnd", n("Div", n("Add", s, halves), [2 * x for x in halves]), 1)
            powers = [[1 << i] for i in range(bits)]
            row_bits = n("Div", along, powers)  # only their parity counts, so they need no mask
            parity = n("BitwiseAnd", n("MatMul", column_bits, row_bits), 1)
            self._known[bits] = (s, n("MatMul", column_bits, powers), n("Gather", SIGNS, parity))
        return self._known[bits]


@dataclass(frozen=True)
class Rows:
    """Integers of a group that form a piece of a tensor, start + scale * integer, and whether it is wanted."""

    key: Key
    reals: int
    scale: float
    start: float
    wanted: bool


@dataclass
class Part:
    """A group of the record as nodes, stage by stage: begin, transform, flatten, split.

    rows: those of the group, piece by piece; words: see `spell_words`; joint: whether neighbors of one scale are
    multiplied together, which takes fewer bytes where many tensors move.
    """

    nodes: Nodes
    walsh: Walsh
    group: Group
    op: HadamardBlocks
    rows: list[Rows] = field(default_factory=list)
    words: str = ""
    joint: bool = False
    _prepared: tuple[str, str, str] | None = None

    @property
    def wanted(self) -> list[Key]:
        """The wanted pieces in this group."""
        return [rows.key for rows in self.rows if rows.wanted]

    @property
    def large(self) -> bool:
        """Whether computation matters more than the number of nodes."""
        return self.op.padded >= LARGE

    @property
    def high_low(self) -> tuple[int, int]:
        """The number of bits in the high and in the low part of a row's index: the format's h and a."""
        return self.op.log2_m // 2, self.op.log2_m - self.op.log2_m // 2

    @property
    def calls_per_block(self) -> int:
        """Calls of Philox for each block of 128 rows or more."""
        op = self.op
        return min((op.K + op.used) // 128 + 1, op.m // 128) if self.large else op.m // 128

    @property
    def call_count(self) -> int:
        """The number of calls of Philox."""
        return -(-self.op.padded // 128) if self.op.m < 128 else self.op.blocks * self.calls_per_block

    def calls(self) -> str:
        """Return the numbers of the calls, (calls, 1) int64."""
        n, op = self.nodes, self.op
        if op.m < 128 or self.calls_per_block == op.m // 128:
            return str(n("Reshape", n("Range", 0, self.call_count, 1), [-1, 1]))
        first = n("Reshape", n("Range", 0, op.padded // 128, op.m // 128), [-1, 1])
        return str(n("Reshape", n("Add", first, n("Range", 0, self.calls_per_block, 1)), [-1, 1]))

    def prepare(self) -> tuple[str, str, str]:
        """Add the small values: `_slots` of the grid, the first columns of H_low (as rows) and of H_high."""
        if self._prepared is None:
            n, (h, a) = self.nodes, self.high_low
            rows, columns = self._corner()
            matrix = self.walsh(a)[2]
            low = n("Slice", matrix, [0], [columns]) if columns < 1 << a else matrix
            if a > h:  # H_(2^h) is every second row of the first half of H_(2^a)'s columns
                high = n("Slice", matrix, [0, 0], [1 << a, rows], [0, 1], [2, 1])
            else:
                high = n("Slice", matrix, [0], [rows], [1]) if rows < 1 << h else matrix
            self._prepared = self._slots(rows, columns), low, high
        return self._prepared

    def begin(self) -> str:
        """Half of the transform, along the low bits: (blocks, rows, 2^a). For blocks of one row, the integers."""
        n, op = self.nodes, self.op
        if op.m == 1:
            x = n("Mul", n("Reshape", self._signs(), [-1]), self._windows())
            return str(n("Add", x, self._zero()))
        slots, low, _ = self.prepare()
        if op.d <= op.free:
            rows, columns = self._corner()
            if rows * columns > op.K + op.used:
                slots = n("Min", slots, op.K + op.used)
            values = n("Gather", self._values(), slots)
        else:
            values = n("Reshape", self._windows(), [op.blocks, op.free])
            if op.K:
                values = n("Concat", n("Expand", np.float32(op.A), [op.blocks, op.K]), values, axis=1)
            values = n("Gather", values, slots, axis=1)
        x = n("Mul", self._signs(slots), values)
        if not self._first_row_is_nonzero():
            x = n("Add", x, self._zero())
        return str(n("MatMul", x, low))

    def transform(self, half: str) -> str:
        """The second half of the transform, along the high bits: (blocks, 2^h, 2^a) integers below 2^16, never -0.0."""
        return half if self.op.m == 1 else str(self.nodes("MatMul", self.prepare()[2], half))

    def flatten(self, integers: str) -> str:
        """The integers of the group, (blocks m,)."""
        return integers if self.op.m == 1 else str(self.nodes("Reshape", integers, [-1]))

    def split(self, integers: str) -> list[str]:
        """The wanted pieces, start + scale w."""
        n, found = self.nodes, []
        runs = [[rows] for rows in self.rows]
        if self.joint:
            runs = [list(same) for _, same in groupby(self.rows, key=lambda rows: rows.scale)]
        for run, integer in zip(runs, self._apart(integers, runs, self.op.padded), strict=False):
            if not any(rows.wanted for rows in run):
                continue
            product = n("Mul", integer, np.float32(run[0].scale))
            each = [[rows] for rows in run]
            for rows, value in zip(run, self._apart(product, each, sum(r.reals for r in run)), strict=True):
                if rows.wanted:
                    found.append(n("Add", value, np.float32(rows.start)) if rows.start else value)
        return found

    def _apart(self, values: str, runs: list[list[Rows]], size: int) -> list[str]:
        """Split the values into those of each run, and the rest, if there is any."""
        sizes = [sum(rows.reals for rows in run) for run in runs]
        if rest := size - sum(sizes):
            sizes.append(rest)
        if len(sizes) == 1:
            return [values]
        apart: list[str] = self.nodes("Split", values, sizes, outputs=len(sizes), axis=0)
        return apart

    def _signs(self, slots: str = "") -> str:
        """+1 and -1 of the slots of every block, (blocks, ...) float32; without `slots` of all, in order."""
        n, op = self.nodes, self.op
        if self.large:  # eight at a time, from a table of bytes
            shifted = n("BitShift", self.words, _u64([0, 8, 16, 24]), direction="RIGHT")
            byte = n("Cast", n("BitwiseAnd", shifted, _u64(255)), to=TensorProto.INT32)
            every = n("Reshape", n("Range", 0, 256, 1), [-1, 1])
            bits = n("BitwiseAnd", n("Div", every, [1 << i for i in range(8)]), 1)
            signs = n("Gather", n("Gather", SIGNS.astype(np.int8), bits), byte)
        else:
            shifts = n("Cast", n("Range", 0, 32, 1), to=TensorProto.UINT64)
            shifted = n("BitShift", self.words, shifts, direction="RIGHT")
            signs = n("Gather", SIGNS, n("Cast", n("BitwiseAnd", shifted, _u64(1)), to=TensorProto.INT32))
        if op.m < 128:
            signs = n("Slice", n("Reshape", signs, [-1]), [0], [op.padded])
        signs = n("Reshape", signs, [op.blocks, -1])
        if slots:
            signs = n("Gather", signs, slots, axis=1)
        return str(n("Cast", signs, to=TensorProto.FLOAT)) if self.large else signs

    def _values(self) -> str:
        """The slots of a block, followed by a zero, as float32, if all blocks have the same slots."""
        op, z = self.op, np.append(self.group.coordinates, 0)
        if not self._packed:
            return self._bytes(np.concatenate([[op.A] * op.K, z]))
        values = self._unpacked(z)
        return str(self.nodes("Concat", np.full(op.K, op.A, np.float32), values, axis=0)) if op.K else values

    def _windows(self) -> str:
        """The values that the free slots of all blocks read, in order: the coordinates, repeated."""
        n, op = self.nodes, self.op
        length = op.blocks * op.free
        if self._packed:  # zeros may follow
            values = n("Slice", self._unpacked(self.group.coordinates), [0], [op.d])
        else:
            values = self._bytes(self.group.coordinates)
        if length > op.d:
            values = n("Tile", values, [-(-length // op.d)])
        return str(n("Slice", values, [0], [length])) if length % op.d else str(values)

    @property
    def _packed(self) -> bool:
        """Whether several coordinates are stored together, because that saves more bytes than its nodes take."""
        return self.op.d * (8 - min(self.group.bits, 8)) > 8 * PACKING

    def _bytes(self, integers: np.ndarray) -> str:
        """Integers as float32. They are stored in one or two bytes each."""
        small = integers.astype(np.int8 if np.abs(integers).max() < 128 else np.int16)
        return str(self.nodes("Cast", small, to=TensorProto.FLOAT))

    def _unpacked(self, integers: np.ndarray) -> str:
        """Integers as float32. They are stored in as many bits as the group's coordinates have; zeros may follow."""
        n, bits = self.nodes, self.group.bits
        word: Any = np.uint8 if bits in (2, 4) else np.uint64
        share = np.dtype(word).itemsize * 8 // bits
        digits = (np.pad(integers, (0, -len(integers) % share)) + (1 << bits - 1)).astype(word).reshape(-1, share)
        shifts = np.array([i * bits for i in range(share)], word)
        words = np.bitwise_or.reduce(digits << shifts, axis=1, keepdims=True)
        apart = n("BitwiseAnd", n("BitShift", words, shifts, direction="RIGHT"), word((1 << bits) - 1))
        return str(n("Sub", n("Cast", n("Reshape", apart, [-1]), to=TensorProto.FLOAT), np.float32(1 << bits - 1)))

    def _zero(self) -> str:
        """A computed +0.0. Added to -0.0 it gives +0.0; a constant zero would be optimized away."""
        return str(self.nodes("Cast", 0, to=TensorProto.FLOAT))

    def _corner(self) -> tuple[int, int]:
        """Rows and columns of the grid of sequencies that are transformed: all of a small group; of a large one, those
        that hold the used columns and, of operator 1, all that come before them."""
        h, a = self.high_low
        if not self.large:
            return 1 << h, 1 << a
        first = self.op.columns
        if not isinstance(self.op, ScatteredBlocks):
            order = walsh.order(self.op.log2_m)
            first = order[: np.flatnonzero(np.isin(order, first)).max() + 1]
        return int(sequency(h)[first >> a].max()) + 1, int(sequency(a)[first & ((1 << a) - 1)].max()) + 1

    def _slots(self, rows: int, columns: int) -> str:
        """The slot that stands in each cell of the corner, (rows, columns) int64; above all slots where none does."""
        if isinstance(self.op, ScatteredBlocks):
            return self._scattered(self.op, rows, columns)
        return self._sorted(rows, columns)

    def _scattered(self, op: ScatteredBlocks, rows: int, columns: int) -> str:
        """Slots by the inverse of the permutation that gives their columns v, a cell's row's part plus its column's:
        what mixes bits is its own inverse, since it moves them by half of their number at least."""
        n, (h, a) = self.nodes, self.high_low
        factor, offset, *factors = op.numbers
        u = self.walsh(a)[1]  # u 2^h is the column's high part even where a = h + 1: see `_sorted`
        high, low = n("Mul", u, 1 << h), n("Reshape", u, [-1])
        if rows < 1 << a:
            high = n("Slice", high, [0], [rows])
        if columns < 1 << a:
            low = n("Slice", low, [0], [columns])
        v = n("Mod", n("Add", high, low), op.m)
        for f in reversed(factors):
            v = n("Mod", n("Mul", v, pow(f, -1, op.m)), op.m)
            v = n("BitwiseXor", v, n("Div", v, 1 << op.shift))
        inverse = pow(factor, -1, op.m)
        return str(n("Mod", n("Add", n("Mul", v, inverse), -offset * inverse % op.m), op.m))

    def _sorted(self, rows: int, columns: int) -> str:
        """Slots by the order of sequency, operator 1's.

        Sorting by a key of distance and column gives the cells in the order of the slots, once the frozen ones' keys
        are set to come first; sorting those numbers again gives the place of each.
        """
        n, op, (h, a) = self.nodes, self.op, self.high_low
        s, u, _ = self.walsh(a)
        weights = [[op.m * ((1 << a) - 1) ** 2, op.m * ((1 << h) - 1) ** 2], [1 << h, 1]]
        keys = n("MatMul", n("Concat", n("Mul", s, s), u, axis=1), weights)
        by_row, by_column = n("Split", keys, outputs=2, axis=1, num_outputs=2)
        if rows < 1 << a:
            by_row = n("Slice", by_row, [0], [rows])
        if columns < 1 << a:
            by_column = n("Slice", by_column, [0], [columns])
        keys = n("Reshape", n("Add", by_row, n("Reshape", by_column, [-1])), [-1])
        if op.K:
            v = op.columns[: op.K]
            frozen = sequency(h)[v >> a] * columns + sequency(a)[v & ((1 << a) - 1)]
            keys = n("ScatterElements", keys, frozen.tolist(), n("Range", -op.K, 0, 1))
        _, cells = n("TopK", keys, [rows * columns], outputs=2, largest=0)
        _, slots = n("TopK", cells, [rows * columns], outputs=2, largest=0)
        return str(n("Reshape", slots, [rows, columns]))

    def _first_row_is_nonzero(self) -> bool:
        """Whether every block has a slot that is not zero in the grid's first row, which enters every sum with sign +1:
        then no sum of the transform has only zeros to add, all of which might be -0.0."""
        op, z, (h, a) = self.op, self.group.coordinates, self.high_low
        slots = np.flatnonzero(sequency(h)[op.columns >> a] == 0)
        if op.A and (slots < op.K).any():
            return True
        at = slots[slots >= op.K] - op.K
        if op.d <= op.free:
            return bool(z[at].any())
        some = np.zeros(min(op.blocks, op.d), bool)  # windows repeat after d blocks at most
        start = np.arange(len(some), dtype=np.int64) * op.free
        for j in at:
            some |= z[(start + j) % op.d] != 0
        return bool(some.all())


def _u64(values: Any) -> np.ndarray:
    return np.array(values, np.uint64)

"""CPU kernels of operators 1 and 2, in native.c."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import byref, c_uint32
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from subcompress.native.compiled import PATHS, Blocks, Rows, available_kinds, library, requested_kind, selected_kind
from subcompress.operators.kernels import Piece, SeededRows, Segment, SignedBlocks
from subcompress.operators.walsh import hadamard
from subcompress.support import threads
from subcompress.support.lazy import torch
from subcompress.support.threads import for_each
from subcompress.tensors.layout import array_of

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "uint16": 2, "float64": 3}
"""The numbers of output dtypes of torch and NumPy in native.c; NumPy has uint16 in place of bfloat16."""

LINE = 64
"""Bytes that the widest vectors are aligned to."""

SHARE = 1 << 20
"""The fewest rows per thread: with fewer, waking it costs more, especially while torch's own threads still spin."""

SUMS = 16
"""The most partial sums of an adjoint. Their number depends only on sizes, so that threads do not change the result."""

SHORT_LOG2_M = 5
"""Blocks of fewer rows than 2^5 do not fill the vectors of 16-bit integers."""

SEEDED = 0, 6, 63, 1
"""d, log2 m, K and A of the operator of seeded starts, which has code of its own."""

UNPROVEN = ("avx512",)
"""Vectors that not every test machine has: they are tried before they are used."""

CACHED = 1 << 25
"""Bytes of output that caches may hold until they are read: larger outputs bypass them."""


def fill(op: SignedBlocks, c: Tensor | np.ndarray, segments: Sequence[Segment]) -> None:
    """Write exact weights from (d,) integers. segments: sorted by rows; blocks outside all of them are skipped."""
    integers = array_of(c)  # NumPy: torch would start threads of its own in each of ours
    short = op.log2_m >= SHORT_LOG2_M and op.peak(integers) < 1 << 15
    _write(op, integers.astype(np.int16 if short else np.float32), float(op.A), segments)


def affine(op: SignedBlocks, z: Tensor, frozen: float, segments: Sequence[Segment]) -> None:
    """Write start + scale * (frozen + P z), from (d,) float32, adding in the same order as `fill`."""
    _write(op, z.detach().float().contiguous(), frozen, segments)


def adjoint(op: SignedBlocks, pieces: Sequence[Piece]) -> Tensor:
    """Compute P^T applied to scale * g at the rows from lo on, for pieces (lo, g, scale) sorted by rows: (d,)
    float32."""
    held = [(lo, g.resolve_neg().float().contiguous(), scale) for lo, g, scale in pieces if len(g)]
    if not held:
        return torch.zeros(op.d, dtype=torch.float32, device="cpu")
    table = (Rows * len(held))(
        *(Rows(lo, lo + len(g), g.data_ptr(), None, None, 0, 0.0, scale) for lo, g, scale in held)
    )
    first, last = held[0][0] // op.m, -(-(held[-1][0] + len(held[-1][1])) // op.m)
    rows = (last - first) * op.m
    few = max(4, rows // (4 * op.d))  # sums of d numbers each cost less than the rows that they are made of
    bounds = _bounds(op, first, last, min(SUMS, few, -(-rows // SHARE)))
    sums = torch.zeros(len(bounds) - 1, op.d, dtype=torch.float32, device="cpu")
    blocks = _tables(op)
    call, kind = _library().subcompress_adjoint, _path()

    def work(i: int) -> None:
        call(kind, byref(blocks.c), table, len(held), bounds[i], bounds[i + 1], sums[i].data_ptr(), blocks.scratch())

    for_each(work, range(len(bounds) - 1))
    return sums.sum(0) if len(sums) > 1 else sums[0]


def _write(
    op: SignedBlocks,
    values: Tensor | np.ndarray,
    frozen: float,
    segments: Sequence[Segment],
    kind: int | None = None,
) -> None:
    segments = [s for s in segments if len(s.out)]
    if not segments:
        return
    # Held until the rows are written: tables that are looked up by an equal operator go with that one.
    seeded = [_tables(s.start.operator) if isinstance(s.start, SeededRows) else None for s in segments]
    table = (Rows * len(segments))(*map(_row, segments, seeded))
    first, last = segments[0].lo // op.m, -(-segments[-1].hi // op.m)
    shares = min(threads.thread_count(), -(-(last - first) * op.m // SHARE))
    bounds = _bounds(op, first, last, 1 if shares == 1 else 4 * shares)
    blocks = _tables(op)
    far = sum(s.out.nbytes for s in segments) > CACHED
    call, short = _library().subcompress_fill, str(values.dtype) == "int16"
    kind = _path() if kind is None else kind

    def work(i: int) -> None:
        rows, place = (table, len(segments), bounds[i], bounds[i + 1]), blocks.scratch()
        call(kind, byref(blocks.c), _address(values), short, frozen, *rows, far, place)

    for_each(work, range(len(bounds) - 1))


def _row(s: Segment, seeded: _Tables | None) -> Rows:
    """Return the struct that the kernel reads for a segment. seeded: the tables of its start's operator."""
    row = Rows(s.lo, s.hi, _address(s.out), scale=s.scale, dtype=_number(s.out.dtype))
    if isinstance(s.start, SeededRows):
        assert seeded is not None, "see _write"
        row.seeded, row.seeded_row = ctypes.addressof(seeded.c), s.start.row
        row.start, row.unit = s.start.center, s.start.scale
    elif isinstance(s.start, (float, int)):
        row.start = s.start
    else:
        assert s.out.dtype == s.start.dtype and row.dtype == 0, "see Segment"
        assert isinstance(s.start, np.ndarray) or s.start.is_contiguous(), "see Segment"
        row.starts = _address(s.start)
    return row


def _address(values: Tensor | np.ndarray) -> int:
    return values.__array_interface__["data"][0] if isinstance(values, np.ndarray) else values.data_ptr()


@cache
def _number(dtype: Any) -> int:
    return DTYPES[str(dtype).removeprefix("torch.")]


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None, "this module is served by `kernel`, which has asked"
    return found


def _path() -> int:
    return PATHS.index(selected_kind()) if requested_kind() else _fastest()


@cache
def _fastest() -> int:
    """Return the fastest version that gives the same results as plain C."""
    plain = PATHS.index("plain")
    for kind in reversed(available_kinds()):
        if kind not in UNPROVEN or _trial_weights(PATHS.index(kind)) == _trial_weights(plain):
            return PATHS.index(kind)
    return plain


def _trial_weights(kind: int) -> bytes:
    """Compute weights of small operators: short and long blocks and integers, every dtype, seeded starts."""
    from subcompress.operators.forms import seeded_integers
    from subcompress.operators.hadamard import HadamardBlocks

    written = []
    # Like all scales of a file, this one makes products exact, so that it does not matter which processors fuse.
    seeded = SeededRows(seeded_integers(5, 1_000), 3, 0.009765625, 0.5)
    for D, d, top in ((90, 9, 7), (700, 40, 7), (5_000, 300, 7), (5_000, 300, 30_000), (40_000, 3_000, 7)):
        op = HadamardBlocks.sized(D, d, 7)
        c = np.random.default_rng(D).integers(-top, top + 1, d)
        short = top == 7 and op.log2_m >= SHORT_LOG2_M
        dtypes: tuple[Any, ...] = (np.float32, np.int16) if short else (np.float32,)
        for values in (c.astype(dtype) for dtype in dtypes):
            for dtype in (np.float32, np.float16, np.uint16, np.float64):
                out = np.empty(D - 5, dtype)
                _write(op, values, float(op.A), [Segment(3, out, 0.125, 0.25)], kind)
                written.append(out.tobytes())
        out = np.empty(min(D, 900), np.float32)
        _write(op, c.astype(np.float32), float(op.A), [Segment(0, out, 0.125, seeded)], kind)
        written.append(out.tobytes())
    return b"".join(written)


class _Tables:
    """The struct that the kernel reads for an operator, and the arrays that it points to."""

    def __init__(self, op: SignedBlocks) -> None:
        near: np.ndarray | None = op.columns.astype(np.uint16)
        columns = slots = signs = sums = None
        if op.log2_m > _library().subcompress_log2_near():
            slots = np.argsort(op.columns).astype(np.int32)
            columns, near = op.columns[slots].astype(np.int32), None
        elif (op.d, op.log2_m, op.K, op.A) == SEEDED:
            signs, sums = _signs_by_column(op.columns), _sums_of_four(op.columns)
        self.held = [near, columns, slots, signs, sums]
        self.c = Blocks(
            (c_uint32 * 2)(op.seed & 0xFFFFFFFF, op.seed >> 32),
            2 * op.group,
            op.log2_m,
            op.K,
            op.used,
            op.d,
            *(None if held is None else held.ctypes.data for held in self.held),
        )
        self.size = int(_library().subcompress_scratch(byref(self.c)))

    def scratch(self) -> int:
        """The address, aligned, of memory for a call: this thread's own, until it asks again."""
        size = 4 * self.size + LINE
        held = getattr(_MINE, "held", None)
        if held is None or held.nbytes < size:
            held = _MINE.held = np.empty(size, np.uint8)
        return -(-_address(held) // LINE) * LINE


_MINE = threading.local()


def _signs_by_column(columns: np.ndarray) -> np.ndarray:
    """native.c, blocks_t.signs of the operator of seeded starts: (3, 64) uint8."""
    signs = np.zeros((3, 64), np.uint8)
    slots = np.arange(len(columns))
    signs[:, columns] = slots // 8, 1 << slots % 8, np.ones_like(slots)
    return signs


def _sums_of_four(columns: np.ndarray) -> np.ndarray:
    """native.c, blocks_t.sums: (16 fours of slots, 16 signs, 64 rows) int8."""
    signs = 1 - 2 * (np.arange(16)[:, None] >> np.arange(4) & 1)
    parts = np.zeros((64, 64), np.int8)  # of each slot, the rows that it alone makes
    parts[: len(columns)] = hadamard(6)[:, columns].T
    return np.einsum("st,ktr->ksr", signs, parts.reshape(16, 4, 64)).astype(np.int8)


_KEPT: WeakKeyDictionary[SignedBlocks, _Tables] = WeakKeyDictionary()


def _tables(op: SignedBlocks) -> _Tables:
    if (found := _KEPT.get(op)) is None:
        found = _KEPT[op] = _Tables(op)
    return found


def _bounds(op: SignedBlocks, first: int, last: int, shares: int) -> list[int]:
    """Split blocks first .. last into about equal shares of whole tiles."""
    step = max(1, _library().subcompress_tile() // op.m)
    tiles = -(-(last - first) // step)
    shares = min(shares, tiles)
    return [first + step * (tiles * i // shares) for i in range(shares)] + [last]

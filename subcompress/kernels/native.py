"""native.c: operators 1 and 2 on a CPU's cores."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_uint32
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from subcompress import threads
from subcompress.kernels import Piece, Segment, SignedBlocks
from subcompress.kernels.compiled import Blocks, Rows, library
from subcompress.layout import array_of
from subcompress.lazy import torch
from subcompress.threads import each

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "uint16": 2, "float64": 3}
"""The numbers that native.c knows output dtypes of torch and NumPy by; uint16 is what NumPy has for bfloat16."""

LINE = 64
"""Bytes that the widest vectors are aligned to."""

SHARE = 1 << 20
"""Rows that are worth a thread: with fewer, waking it costs more, all the more where torch's own still spin."""

SUMS = 16
"""Partial sums of an adjoint at most. Their number depends on sizes alone, so that threads do not change the result."""

CACHED = 1 << 25
"""Bytes of output that caches may hold until they are read: more is written past them."""


def fill(op: SignedBlocks, c: Tensor | np.ndarray, segments: Sequence[Segment]) -> None:
    """Exact weights, from (d,) integers: segments are sorted by rows; blocks that none touches cost nothing."""
    # NumPy: torch would start threads of its own in each of ours.
    _write(op, array_of(c).astype(np.float32), float(op.A), segments)


def affine(op: SignedBlocks, z: Tensor, frozen: float, segments: Sequence[Segment]) -> None:
    """start + scale * (frozen + P z), from (d,) float32, in the order of additions that `fill` takes."""
    _write(op, z.detach().float().contiguous(), frozen, segments)


def adjoint(op: SignedBlocks, pieces: Sequence[Piece]) -> Tensor:
    """P^T of scale * g at the rows from lo on, for pieces (lo, g, scale) sorted by rows: (d,) float32."""
    held = [(lo, g.resolve_neg().float().contiguous(), scale) for lo, g, scale in pieces if len(g)]
    if not held:
        return torch.zeros(op.d, dtype=torch.float32, device="cpu")
    table = (Rows * len(held))(*(Rows(lo, lo + len(g), g.data_ptr(), None, 0.0, scale, 0) for lo, g, scale in held))
    first, last = held[0][0] // op.m, -(-(held[-1][0] + len(held[-1][1])) // op.m)
    rows = (last - first) * op.m
    few = max(4, rows // (4 * op.d))  # sums of d numbers each cost less than the rows that they are made of
    bounds = _bounds(op, first, last, min(SUMS, few, -(-rows // SHARE)))
    sums = torch.zeros(len(bounds) - 1, op.d, dtype=torch.float32, device="cpu")
    blocks = _tables(op)
    call = _library().subcompress_adjoint

    def work(i: int) -> None:
        scratch, place = blocks.scratch()
        call(byref(blocks.c), table, len(held), bounds[i], bounds[i + 1], sums[i].data_ptr(), place)
        del scratch

    each(work, range(len(bounds) - 1))
    return sums.sum(0) if len(sums) > 1 else sums[0]


def _write(op: SignedBlocks, values: Tensor | np.ndarray, frozen: float, segments: Sequence[Segment]) -> None:
    segments = [s for s in segments if len(s.out)]
    if not segments:
        return
    starts: list[Any] = [None if isinstance(s.start, (float, int)) else s.start for s in segments]
    for s, begin in zip(segments, starts, strict=True):
        assert begin is None or (s.out.dtype == begin.dtype and _number(begin.dtype) == 0), "see Segment"
        assert begin is None or isinstance(begin, np.ndarray) or begin.is_contiguous(), "see Segment"
    table = (Rows * len(segments))(
        *(
            Rows(
                s.lo,
                s.hi,
                _address(s.out),
                None if begin is None else _address(begin),
                s.start if begin is None else 0.0,
                s.scale,
                _number(s.out.dtype),
            )
            for s, begin in zip(segments, starts, strict=True)
        )
    )
    first, last = segments[0].lo // op.m, -(-segments[-1].hi // op.m)
    shares = min(threads.number(), -(-(last - first) * op.m // SHARE))
    bounds = _bounds(op, first, last, 1 if shares == 1 else 4 * shares)
    blocks = _tables(op)
    far = sum(s.out.nbytes for s in segments) > CACHED
    call = _library().subcompress_fill

    def work(i: int) -> None:
        scratch, place = blocks.scratch()
        call(
            byref(blocks.c), _address(values), frozen, table, len(segments), bounds[i], bounds[i + 1], far, place
        )  # fmt: skip
        del scratch

    each(work, range(len(bounds) - 1))


def _address(values: Tensor | np.ndarray) -> int:
    return values.__array_interface__["data"][0] if isinstance(values, np.ndarray) else values.data_ptr()


@cache
def _number(dtype: Any) -> int:
    return DTYPES[str(dtype).removeprefix("torch.")]


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None, "this module is served by `kernel`, which has asked"
    return found


class _Tables:
    """What the kernel reads of an operator, and the arrays that it points to."""

    def __init__(self, op: SignedBlocks) -> None:
        columns = op.columns.astype(np.int32)
        slots = None
        if op.log2_m > _library().subcompress_log2_near():
            slots = np.argsort(columns).astype(np.int32)
            columns = columns[slots]
        self.held = columns, slots
        self.c = Blocks(
            (c_uint32 * 2)(op.seed & 0xFFFFFFFF, op.seed >> 32),
            2 * op.group,
            op.log2_m,
            op.K,
            op.used,
            op.d,
            columns.ctypes.data,
            None if slots is None else slots.ctypes.data,
        )
        self.size = int(_library().subcompress_scratch(byref(self.c)))

    def scratch(self) -> tuple[np.ndarray, int]:
        """Memory for a call, and the first address in it that is aligned."""
        held = np.empty(4 * self.size + LINE, np.uint8)
        return held, -(-_address(held) // LINE) * LINE


_KEPT: WeakKeyDictionary[SignedBlocks, _Tables] = WeakKeyDictionary()


def _tables(op: SignedBlocks) -> _Tables:
    if (found := _KEPT.get(op)) is None:
        found = _KEPT[op] = _Tables(op)
    return found


def _bounds(op: SignedBlocks, first: int, last: int, shares: int) -> list[int]:
    """Blocks first .. last in about equal shares, whole tiles each."""
    step = max(1, _library().subcompress_tile() // op.m)
    tiles = -(-(last - first) // step)
    shares = min(shares, tiles)
    return [first + step * (tiles * i // shares) for i in range(shares)] + [last]

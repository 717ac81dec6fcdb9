"""Operators 1 and 2 on CUDA devices (compute capability 8.0 or above), one pass over the memory of the weights.

A unit is one block, or several where a block is small: U = FOLD R C rows, transformed as L X Rm on the tensor cores,
where L and Rm are Hadamard matrices over the high and the low bits of a row (repeated on the diagonal for small
blocks), and the FOLD parts of a large block are added and subtracted first. Products of 16-bit operands are summed in
float32; an operand of more bits is a sum of parts (`_times`): integers come out exact and floats as float32.

Each program walks neighboring units. It makes their signs in registers, finds their place in the segments' table by
one binary search, and writes every weight once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from subcompress.errors import SubcompressError
from subcompress.operators.kernels import Piece, Segment, SignedBlocks
from subcompress.operators.walsh import hadamard

EXACT_FLOAT16 = 1 << 11
"""float16 holds every integer up to this."""

DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
}

FIELDS: tl.constexpr = tl.constexpr(8)
"""Numbers of a segment in its table: address, lo, hi, scale and start (two float32), address of the start or 0, number
of the first unit that no segment before it touches, how many units come before that one."""

_ARGUMENTS = ("total", "segments", "seed_low", "seed_high", "stream", "stride")


def try_out(make: Callable[..., SignedBlocks], log2_m: int, training: bool) -> None:
    """Rows of a small operator of such blocks, or its products where they are for training: compiles what real calls
    take. Raises whatever is in the way, SubcompressError where the device is too old or computes other numbers.

    make: D, d, seed, log2_m, K, A -> the operator.
    """
    if torch.cuda.get_device_capability() < (8, 0):
        raise SubcompressError("the Triton kernel needs compute capability 8.0 or above")
    D = 3 * 2**log2_m + 1
    op = make(D, 2**log2_m // 2 or 3, 1, log2_m, 1 if log2_m > 1 else 0, 1)
    c = torch.arange(op.d, dtype=torch.int32) % 3 - 1
    truth = torch.from_numpy(op.rows(c.numpy(), 0, D))
    z = c.cuda()
    out = torch.empty(D, dtype=torch.float32, device="cuda")
    if not training:
        fill(op, z, [Segment(0, out, 1.0)])
        right = torch.equal(out.cpu(), truth.float())
    else:
        affine(op, z.float(), float(op.A), [Segment(0, out, 1.0)])
        g = torch.linspace(-1, 1, D, dtype=torch.float64)
        wanted, found = op.rmatvec(g), adjoint(op, [(0, g.float().cuda(), 1.0)]).cpu()
        right = _near(out.cpu(), truth) and _near(found, wanted)
    if not right:
        raise SubcompressError("the Triton kernel computes other numbers on this device")


def _near(found: Tensor, wanted: Tensor) -> bool:
    return float((found.double() - wanted.double()).abs().max()) <= 1e-5 * float(wanted.abs().max())


@triton.jit
def _words(first, seed_low, seed_high, stream, QUADS: tl.constexpr):
    """Words of the quads [first, first + QUADS) of a stream: Philox4x32-10, (4 QUADS,) uint32."""
    q = first + tl.arange(0, QUADS)
    a, b = q.to(tl.uint32), (q >> 32).to(tl.uint32)
    c = tl.full((QUADS,), 0, tl.uint32) + stream.to(tl.uint32)
    e = tl.full((QUADS,), 0, tl.uint32)
    left, right = tl.full((QUADS,), 0xD2511F53, tl.uint32), tl.full((QUADS,), 0xCD9E8D57, tl.uint32)
    k0, k1 = seed_low.to(tl.uint32), seed_high.to(tl.uint32)
    for _ in tl.static_range(10):
        high, low = tl.umulhi(a, left), a * left
        a, b, c, e = tl.umulhi(c, right) ^ b ^ k0, c * right, high ^ e ^ k1, low
        k0, k1 = k0 + tl.full((), 0x9E3779B9, tl.uint32), k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, e)), (4 * QUADS,))


@triton.jit
def _times(h, x, LEFT: tl.constexpr, PARTS: tl.constexpr, BRAIN: tl.constexpr):
    """h x where LEFT, else x h, for h of 0 and +-1 and float32 (or, in one part, float16) x.

    One part holds integers up to 2^11 (float16), two hold integers below 2^16 and three hold float32 (bfloat16, of 8
    bits each). BRAIN: the type that the products of bfloat16 parts take.
    """
    if PARTS == 1:
        part = x.to(tl.float16)
        y = tl.dot(h, part) if LEFT else tl.dot(part, h)
    else:
        first = x.to(tl.bfloat16)
        rest = x - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        if PARTS == 2:
            y = tl.dot(h, second.to(BRAIN)) if LEFT else tl.dot(second.to(BRAIN), h)
        else:
            third = (rest - second.to(tl.float32)).to(tl.bfloat16)
            y = tl.dot(h, third.to(BRAIN)) if LEFT else tl.dot(third.to(BRAIN), h)
            y = tl.dot(h, second.to(BRAIN), y) if LEFT else tl.dot(second.to(BRAIN), h, y)
        y = tl.dot(h, first.to(BRAIN), y) if LEFT else tl.dot(first.to(BRAIN), h, y)
    return y


@triton.jit
def _owner(table, segments, number):
    """The segment that brings the unit of that number."""
    low, high = 0, segments
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(table + middle * FIELDS + 7) <= number:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _place(table, s, number):
    """The segment, from s on, that brings the unit of that number, and the unit itself."""
    while tl.load(table + (s + 1) * FIELDS + 7) <= number:
        s += 1
    return s, tl.load(table + s * FIELDS + 6) + number - tl.load(table + s * FIELDS + 7)


@triton.jit
def _square(matrix, SIZE: tl.constexpr, TYPE: tl.constexpr):
    i = tl.arange(0, SIZE)
    return tl.load(matrix + i[:, None] * SIZE + i[None, :]).to(TYPE)


@triton.jit
def _float32(bits):
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _plus(value, given, starts, mask):
    """Adds the values at `starts`, if there are any."""
    if given != 0:
        value += tl.load(starts, mask=mask)
    return value


@triton.jit
def _store(pointers, value, mask, OUT: tl.constexpr, ROUND: tl.constexpr):
    if ROUND:  # the interpreter's own cast truncates
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(pointers, bits.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=mask)
    else:
        tl.store(pointers, value.to(OUT), mask=mask)


@triton.jit
def _write(
    table, s, base, y, R: tl.constexpr, C: tl.constexpr, OUT: tl.constexpr, START: tl.constexpr, ROUND: tl.constexpr
):
    """start + scale y for every segment, from s on, that meets the rows [base, base + R C)."""
    n = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    entry = table + s * FIELDS
    lo = tl.load(entry + 1)
    while lo < base + R * C:
        hi, both = tl.load(entry + 2), tl.load(entry + 3)
        value = _float32(both) * y + _float32(both >> 32)
        address = tl.load(entry) + (base - lo) * (OUT.primitive_bitwidth // 8)
        # Rows of this tile, as int32: what lies outside of it is cut.
        left = tl.maximum(lo - base, 0).to(tl.int32)
        right = tl.minimum(hi - base, R * C).to(tl.int32)
        inside = (n >= left) & (n < right)
        aligned = address % 16 == 0
        if START:
            given = tl.load(entry + 4)
            starts = (given + (base - lo) * 4).to(tl.pointer_type(tl.float32))
            aligned &= (given == 0) | ((given + (base - lo) * 4) % 16 == 0)
        out = address.to(tl.pointer_type(OUT))
        if (left == 0) & (right == R * C) & aligned:
            if START:
                value = _plus(value, given, tl.multiple_of(starts, 16) + n, None)
            _store(tl.multiple_of(out, 16) + n, value, None, OUT, ROUND)
        else:
            if START:
                value = _plus(value, given, starts + n, inside)
            _store(out + n, value, inside, OUT, ROUND)
        entry += FIELDS
        lo = tl.load(entry + 1)


@triton.jit
def _butterfly(x, y, bits):
    """x + y, or x - y where the parity of two bits is odd."""
    return tl.where((bits ^ (bits >> 1)) & 1 == 0, x + y, x - y)


@triton.jit
def _signed(x, words, bits, R: tl.constexpr, C: tl.constexpr):
    """float32 x, negated where these bits of the words are set; bits: 32 number of the word + 31 - number within it."""
    word = tl.reshape(tl.gather(words, tl.reshape(bits >> 5, (R * C,)), 0), (R, C))
    sign = (word << (bits & 31).to(tl.uint32)) & tl.full((), 0x80000000, tl.uint32)
    return (x.to(tl.uint32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def _inputs(values, bits, offsets, words, n, window, R: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr):
    """The signed values in columns n of a unit, float32."""
    at = n
    if WINDOW:
        offset = tl.load(offsets + n)
        at = tl.where(offset < 0, 0, window + offset)
    return _signed(tl.load(values + at).to(tl.float32), words, tl.load(bits + n).to(tl.int32), R, C)


@triton.jit(do_not_specialize=[*_ARGUMENTS, "d"])
def _forward(
    values,
    bits,
    offsets,
    upper,
    lower,
    table,
    total,
    segments,
    seed_low,
    seed_high,
    stream,
    stride,
    d,
    R: tl.constexpr,
    C: tl.constexpr,
    FOLD: tl.constexpr,
    WINDOW: tl.constexpr,
    MIXED: tl.constexpr,  # whether there is anything to transform
    FIRST: tl.constexpr,  # parts of the operands of either product
    SECOND: tl.constexpr,
    OUT: tl.constexpr,
    START: tl.constexpr,
    ROUND: tl.constexpr,  # bfloat16 by integers
    BRAIN: tl.constexpr,
):
    """WINDOW: values holds the frozen value, then coordinates, as far as a unit reads that begins with the last of
    them; else (U,) values by column."""
    T: tl.constexpr = R * C
    U: tl.constexpr = T * FOLD
    tiles, program = total.to(tl.int64) * FOLD, tl.program_id(0).to(tl.int64)
    tile, end = program * tiles // tl.num_programs(0), (program + 1) * tiles // tl.num_programs(0)
    s = _owner(table, segments, tile // FOLD)
    n = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    if MIXED:
        left = _square(upper, R, tl.float16 if FIRST == 1 else BRAIN)
        right = _square(lower, C, tl.float16 if SECOND == 1 else BRAIN)
    while tile < end:
        number, part = tile // FOLD, (tile % FOLD).to(tl.int32)
        s, unit = _place(table, s, number)
        words = _words(unit * (U // 128), seed_low, seed_high, stream, U // 128)
        window = (unit * stride % d + 1).to(tl.int32)
        x = _inputs(values, bits, offsets, words, n, window, R, C, WINDOW)
        for other in tl.static_range(1, FOLD):
            more = _inputs(values, bits, offsets, words, other * T + n, window, R, C, WINDOW)
            x = _butterfly(x, more, part & other)
        if MIXED:
            x = _times(right, _times(left, x, True, FIRST, BRAIN), False, SECOND, BRAIN)
        _write(table, s, unit * U + part * T, x, R, C, OUT, START, ROUND)
        tile += 1


@triton.jit
def _read(table, s, base, R: tl.constexpr, C: tl.constexpr, IN: tl.constexpr):
    """scale g of the rows [base, base + R C), zero where no piece is."""
    n = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    entry = table + s * FIELDS
    lo = tl.load(entry + 1)
    g = tl.full((R, C), 0.0, tl.float32)
    while lo < base + R * C:
        hi, scale = tl.load(entry + 2), _float32(tl.load(entry + 3))
        address = tl.load(entry) + (base - lo) * (IN.primitive_bitwidth // 8)
        left = tl.maximum(lo - base, 0).to(tl.int32)
        right = tl.minimum(hi - base, R * C).to(tl.int32)
        pointers = address.to(tl.pointer_type(IN))
        if (left == 0) & (right == R * C) & (address % 16 == 0):
            g = scale * tl.load(tl.multiple_of(pointers, 16) + n).to(tl.float32)
        else:
            g += scale * tl.load(pointers + n, mask=(n >= left) & (n < right), other=0.0).to(tl.float32)
        entry += FIELDS
        lo = tl.load(entry + 1)
    return g


@triton.jit(do_not_specialize=[*_ARGUMENTS, "origin", "limit"])
def _adjoint(
    out,
    bits,
    offsets,
    upper,
    lower,
    table,
    total,
    segments,
    seed_low,
    seed_high,
    stream,
    stride,
    origin,
    limit,
    R: tl.constexpr,
    C: tl.constexpr,
    FOLD: tl.constexpr,
    WINDOW: tl.constexpr,
    MIXED: tl.constexpr,
    IN: tl.constexpr,
    BRAIN: tl.constexpr,
):
    """WINDOW: out holds the free slots from `origin` to `limit`, counted over all blocks; else it is (programs, U), by
    column.

    The first dimension of the grid is the part of a unit whose columns are computed.
    """
    T: tl.constexpr = R * C
    U: tl.constexpr = T * FOLD
    total, part, program = total.to(tl.int64), tl.program_id(0), tl.program_id(1).to(tl.int64)
    number, end = program * total // tl.num_programs(1), (program + 1) * total // tl.num_programs(1)
    s = _owner(table, segments, number)
    n = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    if MIXED:
        left, right = _square(upper, R, BRAIN), _square(lower, C, BRAIN)
    sums = tl.full((R, C), 0.0, tl.float32)
    while number < end:
        s, unit = _place(table, s, number)
        words = _words(unit * (U // 128), seed_low, seed_high, stream, U // 128)
        x = _read(table, s, unit * U, R, C, IN)
        for other in tl.static_range(1, FOLD):
            more = _read(table, s, unit * U + other * T, R, C, IN)
            x = _butterfly(x, more, part & other)
        if MIXED:
            x = _times(right, _times(left, x, True, 3, BRAIN), False, 3, BRAIN)
        x = _signed(x, words, tl.load(bits + part * T + n).to(tl.int32), R, C)
        if WINDOW:
            offset = tl.load(offsets + part * T + n)
            place = unit * stride + offset
            tl.store(out + place - origin, x, mask=(offset >= 0) & (place < limit))
        else:
            sums += x
        number += 1
    if not WINDOW:
        tl.store(out + program * U + part * T + n, sums)


class _Tile(NamedTuple):
    """rows, columns: R and C; fold: tiles of a unit; warps: of a program; resident: programs on a multiprocessor at a
    time; registers: most a thread may take, where the compiler's own choice would halve `resident`."""

    rows: int
    columns: int
    fold: int
    warps: int
    resident: int
    registers: int | None = None

    @property
    def unit(self) -> int:
        """Rows of a unit."""
        return self.rows * self.columns * self.fold


@lru_cache
def _is_hopper(device: torch.device) -> bool:
    """Whether its tensor cores work like those of compute capability 9.0; the interpreter takes the same tiles."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9


def _tile(log2_m: int, exact: bool, hopper: bool) -> _Tile:
    """What the compiler's counts of registers, spills and shared memory suggest: up to 205 kB for Hopper, where a
    program may take 227 kB, and 90 kB elsewhere."""
    if log2_m == 0:
        return _Tile(64, 64, 1, 8, 2, 128)
    if log2_m <= 12:
        return _Tile(64, 64, 1, 4, 4) if exact else _Tile(128, 32, 1, 8, 2, 128)
    if exact and hopper:
        return _Tile(128, 64, 1, 8, 2, 128) if log2_m == 13 else _Tile(256, 64, 1 << log2_m - 14, 16, 1)
    if hopper and log2_m == 15:
        return _Tile(128, 128, 2, 8, 1)
    return _Tile(128, 64, 1 << log2_m - 13, 8, 1)


class _Tables(NamedTuple):
    """bits, offsets: where the sign of each column of a unit is, int16, as `_signed` takes it, and how many free slots
    come before its own, int32, or -1 where that is frozen; upper, lower: the factors of H, float16; columns: the column
    of each used slot of a block."""

    bits: Tensor
    offsets: Tensor
    upper: Tensor
    lower: Tensor
    columns: Tensor


def _factor(size: int, log2_f: int) -> np.ndarray:
    """Hadamard matrices on the diagonal, (size, size)."""
    return np.kron(np.eye(size >> log2_f, dtype=np.int8), hadamard(log2_f))


@lru_cache(maxsize=64)
def _tables(op: SignedBlocks, tile: _Tile, device: torch.device) -> _Tables:
    slots = np.full(op.m, -1, np.int64)
    slots[op.columns] = np.arange(len(op.columns))
    slots[slots < 0] = np.arange(len(op.columns), op.m)  # columns that hold nothing: slots that are not used
    before = np.arange(tile.unit // op.m)[:, None]
    offsets = np.where(slots < op.K, -1, before * op.free + slots - op.K)
    low = min(op.log2_m, tile.columns.bit_length() - 1)
    high = min(op.log2_m - low, tile.rows.bit_length() - 1)
    factors = (_factor(tile.rows, high), _factor(tile.columns, low))
    arrays = (
        (before * op.m + slots ^ 31).reshape(-1).astype(np.int16),
        offsets.reshape(-1).astype(np.int32),
        *(f.astype(np.float16) for f in factors),
        op.columns,
    )
    return _Tables(*(torch.from_numpy(a).to(device) for a in arrays))


def _int32(word: int) -> int:
    """The int32 of the same bits."""
    return word - (word >> 31 << 32)


def _seed(op: SignedBlocks) -> dict[str, int]:
    return {
        "seed_low": _int32(op.seed & 0xFFFFFFFF),
        "seed_high": _int32(op.seed >> 32),
        "stream": _int32(2 * op.group),
    }


def _launch(kernel: Any, op: SignedBlocks, tile: _Tile, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    device = arguments["table"].device
    constants = {
        "R": tile.rows,
        "C": tile.columns,
        "FOLD": tile.fold,
        "MIXED": op.log2_m > 0,
        "BRAIN": tl.bfloat16 if device.type == "cuda" else tl.float32,  # NumPy, the interpreter, has no bfloat16
        "num_warps": tile.warps,
        "maxnreg": tile.registers,
        "enable_fp_fusion": True,
    }
    with torch.cuda.device_of(arguments["table"]):
        kernel[grid](**arguments, **constants)


def _programs(tile: _Tile, device: torch.device, most: int) -> int:
    """The number of programs that the device runs at a time, at most `most`."""
    if device.type != "cuda":
        return min(most, 3)
    return min(most, tile.resident * torch.cuda.get_device_properties(device).multi_processor_count)


class _Plan(NamedTuple):
    """table: see FIELDS; total: units; segments: rows of the table except the last, which ends every walk."""

    table: Tensor
    total: int
    segments: int
    units: tuple[int, int]


def _plan(segments: Sequence[Segment], unit: int, device: torch.device) -> _Plan:
    """The table of some segments that are sorted and do not overlap, none of them empty."""
    starts = [s.start.data_ptr() if isinstance(s.start, Tensor) else 0 for s in segments]
    numbers = [(s.scale, 0.0 if isinstance(s.start, Tensor) else s.start) for s in segments]
    table = np.zeros((len(segments) + 1, FIELDS.value), np.int64)
    table[:-1, :3] = [(s.out.data_ptr(), s.lo, s.hi) for s in segments]
    table[:-1, 3] = (np.array(numbers, np.float32) + np.float32(0)).view(np.int64)[:, 0]  # -0.0 becomes +0.0
    table[:-1, 4] = starts
    table[-1, 1] = table[-1, 2] = np.iinfo(np.int64).max
    first, last = table[:-1, 1] // unit, -(-table[:-1, 2] // unit)
    table[1:-1, 6] = np.maximum(first[1:], last[:-1])
    table[0, 6] = first[0]
    table[1:, 7] = np.cumsum(last - table[:-1, 6])
    return _Plan(torch.from_numpy(table).to(device), int(table[-1, 7]), len(segments), (int(first[0]), int(last[-1])))


def _shared(op: SignedBlocks, tile: _Tile, tables: _Tables, plan: _Plan) -> dict[str, Any]:
    """What both kernels take."""
    return {
        "bits": tables.bits,
        "offsets": tables.offsets,
        "upper": tables.upper,
        "lower": tables.lower,
        "table": plan.table,
        "total": plan.total,
        "segments": plan.segments,
        **_seed(op),
        "stride": tile.unit // op.m * op.free,
        "WINDOW": op.d > op.free,
    }


def _by_dtype(segments: Sequence[Segment]) -> dict[torch.dtype, list[Segment]]:
    groups: dict[torch.dtype, list[Segment]] = {}
    for s in segments:
        if len(s.out):
            groups.setdefault(s.out.dtype, []).append(s)
    return groups


def _values(op: SignedBlocks, tile: _Tile, values: Tensor, frozen: float) -> Tensor:
    """What `_forward` reads the values of a unit from."""
    in_unit = tile.unit // op.m
    if op.d <= op.free:
        columns, block = _tables(op, tile, values.device).columns, values.new_zeros(op.m)
        return block.index_fill_(0, columns[: op.K], frozen).index_copy_(0, columns[op.K :], values).repeat(in_unit)
    times = -(-in_unit * op.free // op.d) + 1
    return torch.cat([values.new_full((1,), frozen), values.repeat(times)])


def _expand(op: SignedBlocks, tile: _Tile, values: Tensor, parts: tuple[int, int], segments: Sequence[Segment]) -> None:
    device = values.device
    tables = _tables(op, tile, device)
    for dtype, group in _by_dtype(segments).items():
        plan = _plan(group, tile.unit, device)
        arguments = {
            "values": values,
            **_shared(op, tile, tables, plan),
            "d": op.d,
            "FIRST": parts[0],
            "SECOND": parts[1],
            "OUT": DTYPES[dtype],
            "START": any(isinstance(s.start, Tensor) for s in group),
            "ROUND": dtype == torch.bfloat16 and device.type != "cuda",
        }
        _launch(_forward, op, tile, (_programs(tile, device, plan.total * tile.fold),), arguments)


def fill(op: SignedBlocks, c: Tensor, segments: Sequence[Segment]) -> None:
    """Writes every segment from the integers c, (d,): bit for bit what docs/FORMAT.md, "Weights", says."""
    tile = _tile(op.log2_m, True, _is_hopper(c.device))
    key = op, tile, None if c.is_inference() else c._version
    if (found := _PREPARED.get(c)) is None or found[0] != key:
        found = _PREPARED[c] = key, _prepared(op, tile, c)
    values, parts = found[1]
    _expand(op, tile, values, parts, segments)


_PREPARED = WeakTensorKeyDictionary()
"""What `fill` makes of coordinates, while they live: a stream of leaves asks for the same again and again."""


def _prepared(op: SignedBlocks, tile: _Tile, c: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The values that the kernel reads, and the parts that the operands of its two products take."""
    largest = max(int(c.abs().max()), op.A if op.K else 0)
    first = 1 if largest * tile.fold <= EXACT_FLOAT16 else 2
    # What L X holds is a sum over the slots in a column of the tile.
    at = op.columns % tile.columns
    most = largest * int(np.bincount(at).max())
    if most > EXACT_FLOAT16 and op.d <= op.free:
        sizes = np.concatenate([np.full(op.K, op.A), np.abs(c.cpu().numpy().astype(np.int64))])
        most = int(np.bincount(at, sizes).max())
    second = 1 if most <= EXACT_FLOAT16 else 2
    narrow = op.d > op.free and first == 1 and op.log2_m > 0  # scattered reads of half the bytes
    values = c.to(torch.float16 if narrow else torch.float32)
    return _values(op, tile, values, float(op.A)), (first, second)


def affine(op: SignedBlocks, z: Tensor, frozen: float, segments: Sequence[Segment]) -> None:
    """Writes every segment from float32 z, (d,), with the frozen slots at that value."""
    tile = _tile(op.log2_m, False, _is_hopper(z.device))
    _expand(op, tile, _values(op, tile, z, frozen), (3, 3), segments)


def adjoint(op: SignedBlocks, pieces: Sequence[Piece]) -> Tensor:
    """The sum of scale P^T g over pieces (lo, g, scale), g at rows [lo, lo + n), sorted: (d,) float32.

    The same bits in every call on a device. Windows take a buffer of as many float32 as there are weights.
    """
    device = pieces[0][1].device
    total = torch.zeros(op.d, dtype=torch.float32, device=device)
    for dtype, group in _by_dtype(
        [Segment(lo, g.resolve_neg().contiguous(), scale) for lo, g, scale in pieces]
    ).items():
        total += _adjoint_of(op, group, dtype, device)
    return total


def _adjoint_of(op: SignedBlocks, pieces: list[Segment], dtype: torch.dtype, device: torch.device) -> Tensor:
    tile, windows = _tile(op.log2_m, False, _is_hopper(device)), op.d > op.free
    tables = _tables(op, tile, device)
    plan = _plan(pieces, tile.unit, device)
    programs = max(_programs(tile, device, plan.total * tile.fold) // tile.fold, 1)
    first, last = (number * tile.unit // op.m for number in plan.units)
    last = min(last, op.blocks)
    before = first * op.free % op.d
    if windows:
        # Slot s of the buffer holds a term of coordinate s mod d.
        slots = before + (last - first) * op.free
        buffer = torch.zeros(-(-slots // op.d) * op.d, dtype=torch.float32, device=device)
    else:
        buffer = torch.empty(programs, tile.unit, dtype=torch.float32, device=device)
    arguments = {
        "out": buffer[before:] if windows else buffer,
        **_shared(op, tile, tables, plan),
        "origin": first * op.free,
        "limit": last * op.free,
        "IN": DTYPES[dtype],
    }
    _launch(_adjoint, op, tile, (tile.fold, programs), arguments)
    if windows:
        return buffer.view(-1, op.d).sum(0)
    return buffer.view(-1, op.m).sum(0)[tables.columns[op.K :]]

"""The shortest description of given start values: a constant, a ramp, a repeated table, or runs of a few constants."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from subcompress.operators.forms import Chosen, Ramp, Table
from subcompress.tensors.layout import DTYPES
from subcompress.tensors.rounding import TINY

MAX_DESCRIBED_RUNS = 1 << 20
"""The most runs of a tensor in a file; beyond it the values are written as a table."""

EXACT = 1 << 20
"""Bytes up to which a cost is computed exactly; beyond it is estimated."""

FEW = 4
"""The most different constants for which runs are tried."""

Runs = tuple[tuple[int, int], ...]
Described = tuple[list[Chosen], Runs]


def describe(values: np.ndarray, shape: tuple[int, ...], dtype: str) -> Described:
    """Return the shortest forms of (n,) finite values in a dtype of the format, and the runs of those forms.

    shape: the shape of the values as a tensor, whose rows may repeat. The runs of a single form are empty.
    """
    if (one := _constant(values, dtype)) is not None:
        return [one], ()
    period = _period(values, shape)
    first = values[:period]
    if (ramp := _ramp(first, dtype)) is not None:
        return [ramp], ()
    table: Described = ([Table(first.tobytes(), dtype)], ())
    return min([table, *_halves(first, dtype, len(values)), *_constants(first, dtype)], key=cost_of)


def cost_of(described: Described) -> int:
    """Estimate the bytes that forms and runs take in a file."""
    forms, runs = described
    return sum(map(form_cost, forms)) + runs_cost(runs)


@lru_cache(64)
def form_cost(form: Chosen) -> int:
    """Estimate the bytes that a start takes in a file."""
    if isinstance(form, Table):
        return deflated_size(form.data)
    return 24 if isinstance(form, Ramp) else 5


def runs_cost(runs: Runs) -> int:
    """Estimate the bytes that runs take in a file."""
    if not runs:
        return 0
    numbers = np.array(runs, np.int64)
    kind = np.uint8 if numbers.max() < 128 else np.uint16 if numbers.max() < 1 << 14 else np.uint32
    return deflated_size(numbers.astype(kind).tobytes())


def deflated_size(raw: bytes | memoryview) -> int:
    """Return the deflated size of the bytes; for more than EXACT of them an estimate from samples."""
    if len(raw) <= EXACT:
        return len(zlib.compress(raw, 9)) if len(raw) else 0
    size = EXACT // 16
    pieces = [raw[at : at + size] for at in range(0, len(raw) - size, (len(raw) - size) // 15)]
    return int(sum(len(zlib.compress(p, 1)) for p in pieces) / sum(map(len, pieces)) * len(raw))


def _constant(values: np.ndarray, dtype: str) -> float | None:
    """Return the single value of all if float32 holds it exactly and a file can express it, else None."""
    if len(values) and not (values == values[0]).all():
        return None
    value = _number(values[0], dtype) if len(values) else 0.0
    if value == 0:
        return 0.0  # of either sign
    return value if abs(value) >= TINY and float(np.float32(value)) == value else None


def _number(value: np.generic, dtype: str) -> float:
    if DTYPES[dtype] == np.uint16:
        return float(np.array(int(value) << 16, np.uint32).view(np.float32))
    return float(value)


def _period(values: np.ndarray, shape: tuple[int, ...]) -> int:
    """Return after how many values they repeat: the size of the last axes if all slices before them are equal."""
    size = 1
    for axis in reversed(shape):
        size *= axis
        if 0 < size < len(values) and len(values) % size == 0:
            rows = values.reshape(-1, size)
            if (rows == rows[0]).all():
                return size
    return len(values)


def _ramp(first: np.ndarray, dtype: str) -> Ramp | None:
    """Return a ramp that gives exactly these values, None if none of those tried does."""
    if len(first) < 4:
        return None
    numbers = [_number(v, dtype) for v in (first[0], first[1], first[-1])]
    steps = (numbers[1] - numbers[0], (numbers[2] - numbers[0]) / (len(first) - 1))
    for step in (*steps, float(np.float32(steps[1]))):
        found = Ramp(numbers[0], step, len(first), dtype)
        if (found.values(0, len(first)) == first).all():
            return found
    return None


def _halves(first: np.ndarray, dtype: str, n: int) -> Iterator[Described]:
    """Yield two ramps for values of torch.linspace, which counts its second half back from the last value."""
    half = len(first) // 2
    if len(first) < n or half < 4 or DTYPES[dtype] == np.uint16:
        return
    step = float(np.float32((float(first[-1]) - float(first[0])) / (len(first) - 1)))
    rest = len(first) - half
    low = Ramp(float(first[0]), step, half, dtype)
    high = Ramp(float(first[-1]) - step * (rest - 1), step, rest, dtype)
    if (low.values(0, half) == first[:half]).all() and (high.values(0, rest) == first[half:]).all():
        yield [low, high], ((0, half), (1, rest))


def _constants(first: np.ndarray, dtype: str) -> Iterator[Described]:
    """Yield runs of a few constants, as in an identity, a diagonal or a sparse tensor."""
    # The bits: zeros of both signs are alike, and numbers of any dtype can be counted.
    distinct, items = np.unique(first, return_inverse=True)
    if len(distinct) > FEW:
        return
    forms = [_constant(distinct[i : i + 1], dtype) for i in range(len(distinct))]
    if (runs := runs_of(items)) is not None and all(form is not None for form in forms):
        yield [form for form in forms if form is not None], runs


def runs_of(items: np.ndarray) -> Runs | None:
    """Return the shortest runs of (number, length) that, repeated, give the (n,) numbers; None if there are too
    many."""
    items = items.reshape(-1)
    starts = np.concatenate([[0], 1 + np.flatnonzero(items[1:] != items[:-1])])
    lengths = np.diff(starts, append=len(items))
    named = items[starts]
    repeat = _repeated(named, lengths)
    if repeat > MAX_DESCRIBED_RUNS:
        return None
    return tuple((int(i), int(n)) for i, n in zip(named[:repeat], lengths[:repeat], strict=True))


def _repeated(named: np.ndarray, lengths: np.ndarray) -> int:
    """Return after how many runs they repeat; the end may cut the last ones short."""
    count = len(named)
    for size in range(1, min(count // 2, 4096) + 1):
        if named[0] != named[size] or lengths[0] != lengths[size]:
            continue
        alike = (named[size:] == named[:-size]).all() and (lengths[size:-1] == lengths[: -size - 1]).all()
        if alike and lengths[-1] <= lengths[count - 1 - size]:
            return size
    return count

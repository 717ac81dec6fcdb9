"""Start values in few bytes: constants, tables, ramps and seeded random numbers.

A form gives the start of any range of values of a tensor as an array, without torch (docs/FORMAT.md, section 5). A
`Pattern` says which of several forms each value of a tensor has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from subcompress.operators.hadamard import SEEDED_GROUP, HadamardBlocks
from subcompress.tensors.layout import DTYPES
from subcompress.tensors.rounding import rounded

SEEDED_SLOTS = 63
"""The number of random signs that a seeded start adds up, out of the 64 columns of a block."""

SLICES = 64
"""The most runs of an item that are copied one by one; more are found by index."""


@dataclass(frozen=True)
class Table:
    """Explicit values, as little-endian bytes of the dtype, repeated until all values have one."""

    data: bytes
    dtype: str

    @property
    def period(self) -> int:
        """The number of values after which they repeat."""
        return len(self.data) // DTYPES[self.dtype].itemsize

    def values(self, lo: int, n: int) -> np.ndarray:
        """Return values lo .. lo + n, (n,)."""
        held = np.frombuffer(self.data, DTYPES[self.dtype])
        return held[lo : lo + n].copy() if lo + n <= len(held) else held[np.arange(lo, lo + n) % len(held)]


@dataclass(frozen=True)
class Ramp:
    """first + step * (k mod period) for value k, computed in float64 and rounded to the dtype."""

    first: float
    step: float
    period: int
    dtype: str = "F32"

    def values(self, lo: int, n: int) -> np.ndarray:
        """Return values lo .. lo + n, (n,)."""
        k = (np.arange(lo, lo + n, dtype=np.int64) % self.period).astype(np.float64)
        return rounded(self.first + self.step * k, DTYPES[self.dtype])


Chosen = float | Table | Ramp
"""A fixed start. A number is one float32 value for all."""


@dataclass(frozen=True)
class Seeded:
    """Random values center + scale * integer, where an integer is a sum of SEEDED_SLOTS random signs drawn from the
    seed."""

    scale: float
    center: Chosen = 0.0


Form = Chosen | Seeded


def chosen_values(form: Chosen, lo: int, n: int, dtype: str) -> np.ndarray:
    """Return values lo .. lo + n of a start that is not seeded, (n,), in a dtype of the format; a table has its own."""
    if isinstance(form, float):
        return rounded(np.full(n, form, np.float32), DTYPES[dtype])
    return form.values(lo, n)


def seeded_integers(seed: int, n: int) -> HadamardBlocks:
    """Return the operator without coordinates whose rows are the integers of all seeded values of a file."""
    return HadamardBlocks(n, 0, seed, 6, SEEDED_SLOTS, 1, SEEDED_GROUP)


NO_COORDINATES = np.zeros(0, np.int32)

FANS: dict[int, Callable[[int, int], float]] = {
    1: lambda fan_in, fan_out: 1 / (3 * fan_in),
    2: lambda fan_in, fan_out: 2 / fan_in,
    3: lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    4: lambda fan_in, fan_out: 1 / fan_in,
}
"""By number, the variance that usual initializers give: PyTorch's own, He et al. 2015 (arXiv:1502.01852), Glorot and
Bengio 2010, LeCun et al. 1998. Numbers are part of the format."""


def fans(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return fan_in and fan_out of a weight with two or more axes; None for others and for empty ones."""
    if len(shape) < 2 or math.prod(shape) == 0:
        return None
    return math.prod(shape[1:]), math.prod(shape) // shape[1]


def seeded_scale(variance: float) -> float:
    """Return the scale of a seeded start of that variance, not rounded to bfloat16 yet."""
    return math.sqrt(variance / SEEDED_SLOTS)


def counts_of(runs: tuple[tuple[int, int], ...], items: int, size: int) -> list[int]:
    """Return how many of `size` values belong to each item, according to the runs."""
    if len(runs) > SLICES:
        held, lengths = table_of(runs).T
        times, rest = divmod(size, int(lengths.sum()))
        inside = np.clip(rest - (np.cumsum(lengths) - lengths), 0, lengths)
        # Sums of float64 are exact: a tensor has fewer values than its integers.
        return [int(n) for n in np.bincount(held, times * lengths + inside, items)]
    times, rest = divmod(size, sum(length for _, length in runs))
    counts = [0] * items
    for item, length in runs:
        counts[item] += times * length + min(length, rest)
        rest = max(0, rest - length)
    return counts


def table_of(runs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Return the runs as (n, 2) int64."""
    return np.fromiter(chain.from_iterable(runs), np.int64, 2 * len(runs)).reshape(-1, 2)


@dataclass(frozen=True)
class Pattern:
    """Maps each of `size` values of a tensor to an item: runs of (item, length), repeated until all have one."""

    runs: tuple[tuple[int, int], ...]
    size: int

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([length for _, length in self.runs], dtype=np.int64)

    @cached_property
    def _items(self) -> np.ndarray:
        return np.array([item for item, _ in self.runs], np.int64)

    @cached_property
    def items(self) -> int:
        """The number of items."""
        return int(self._items.max()) + 1

    @property
    def period(self) -> int:
        """The number of values after which the runs repeat."""
        return int(self._ends[-1])

    def before(self, at: int) -> list[int]:
        """Return how many of the values before value `at` belong to each item."""
        whole, rest = divmod(at, self.period)
        lengths = np.diff(self._ends, prepend=0)
        inside = np.minimum(lengths, np.maximum(0, rest - (self._ends - lengths)))
        counts = np.zeros(self.items, np.int64)
        np.add.at(counts, self._items, whole * lengths + inside)
        return [int(c) for c in counts]

    @cached_property
    def counts(self) -> list[int]:
        """The number of values of each item."""
        return self.before(self.size)

    def places(self, lo: int, n: int) -> Iterator[tuple[int, int, slice | np.ndarray]]:
        """For values lo .. lo + n: an item, how many of its values come before those that follow, and where they lie,
        counted from lo. An item may come several times, with its values in order."""
        ranks = self.before(lo)
        near = list(self._runs_in(lo, n))
        if len(near) <= SLICES:
            for item, begin, end in near:
                yield item, ranks[item], slice(begin, end)
                ranks[item] += end - begin
            return
        inside = np.arange(lo, lo + n, dtype=np.int64) % self.period
        found = self._items[np.searchsorted(self._ends, inside, side="right")]
        for item in range(self.items):
            if len(at := np.flatnonzero(found == item)):
                yield item, ranks[item], at

    def _runs_in(self, lo: int, n: int) -> Iterator[tuple[int, int, int]]:
        """Return (item, begin, end) of the runs in the range, at most one more than SLICES of them."""
        at, hi = lo, lo + n
        run = int(np.searchsorted(self._ends, at % self.period, side="right"))
        for _ in range(SLICES + 1):
            if at >= hi:
                return
            end = min(hi, at - at % self.period + int(self._ends[run]))
            yield int(self._items[run]), at - lo, end - lo
            at, run = end, (run + 1) % len(self.runs)

"""Signed Hadamard blocks: the default operator, exact on integers (docs/FORMAT.md, section 9).

    w_b = H_m diag(s_b) E c_b,    b = 0 .. ceil(D / m) - 1

H_m is the m x m Hadamard matrix (Sylvester's, +-1); s_b holds random signs, one a slot; E places the slots in columns
of low sequency; c_b is K frozen constants A and then the coordinates. Relatives: Fastfood (Le, Sarlos, Smola 2013,
arXiv:1408.3060) as used by Li et al. 2018, and the subsampled randomized Hadamard transform (Ailon, Chazelle 2006).
P costs O(D log m) additions (NumPy here, and `kernels`) or O(D sqrt m) in two matrix products (torch here),
P^T the same; memory is O(m), for torch O(D) for the signs, and never O(D d).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.operators import philox, walsh
from subcompress.operators.base import CHUNK, ExactOperator
from subcompress.operators.kernels import Piece, Segment, kernel
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG2_M = 20

SEEDED_GROUP = 256
"""The group without coordinates, above all groups of a file: its rows are random numbers that the seed gives."""


@dataclass(frozen=True)
class HadamardBlocks(ExactOperator):
    """m = 2^log2_m rows a block; K frozen slots at the integer A; `group` numbers the random streams of a file."""

    D: int
    d: int
    seed: int
    log2_m: int = 10
    K: int = 16
    A: int = 1
    group: int = 0

    has_start: ClassVar[bool] = True
    code: ClassVar[int] = 1
    name: ClassVar[str] = "hadamard"
    limits: ClassVar[dict[str, int]] = {
        "d": 1 << 22,
        "log2_m": MAX_LOG2_M,
        "K": (1 << MAX_LOG2_M) - 1,
        "A": (1 << 15) - 1,
    }

    def __post_init__(self) -> None:
        if not 0 <= self.log2_m <= MAX_LOG2_M or not 0 <= self.K < self.m or not 0 <= self.A < 1 << 15:
            raise SubcompressError(
                f"a Hadamard block must have 1 to 2^{MAX_LOG2_M} rows, fewer frozen slots K than rows and A "
                f"below 2^15; got m = 2^{self.log2_m}, K = {self.K}, A = {self.A}"
            )
        most = min(self.D, self.blocks * self.free)
        if not (self.group != SEEDED_GROUP) <= self.d <= most:
            raise SubcompressError(
                f"D = {self.D} weights in blocks of m = {self.m} with K = {self.K} take 1 to {most} "
                f"coordinates; got d = {self.d}: give another d"
            )

    @classmethod
    def sized(cls, D: int, d: int, seed: int, K: int = 16, group: int = 0) -> Self:
        """m is the smallest power of two with at least twice as many rows as slots, within [2^8, 2^15]
        (benchmarks/operators.py); less where D does not fill one such block: columns are orthogonal over whole ones.
        With d = D there is nothing to share: blocks of one row, a coordinate a weight, and no frozen slots."""
        if d == D:
            return cls(D, d, seed, 0, 0, 0, group)
        slots = d + K
        log2_m = min(max((2 * slots - 1).bit_length(), 8), 15)
        whole = D.bit_length() - 1
        if whole < log2_m:
            room = -(-D >> whole) * ((1 << whole) - K)
            log2_m = whole if room >= d else (slots - 1).bit_length()
        return cls(D, d, seed, log2_m, K, min(K, 1), group)

    @classmethod
    def of(cls, D: int, seed: int, group: int, numbers: Sequence[int]) -> Self:
        d, log2_m, K, A = numbers
        return cls(D, d, seed, log2_m, K, A, group)

    def with_constant(self, A: int) -> Self:
        """Return a copy with the frozen slots set to A; it shares tables that do not depend on A."""
        found = replace(self, A=A)
        shared = ("columns", "_grid", "_cache")
        found.__dict__.update({name: self.__dict__[name] for name in shared if name in self.__dict__})
        return found

    @property
    def m(self) -> int:
        """The number of rows in a block."""
        return 1 << self.log2_m

    @property
    def block(self) -> int:
        return self.m

    @property
    def blocks(self) -> int:
        """The number of blocks in D, the last one cut."""
        return -(-self.D // self.m)

    @property
    def free(self) -> int:
        """The number of slots in a block that are not frozen."""
        return self.m - self.K

    @property
    def row_norm(self) -> float:
        return math.sqrt(self.used)

    @property
    def used(self) -> int:
        """The number of slots in a block that hold a coordinate."""
        return min(self.d, self.free)

    @cached_property
    def columns(self) -> np.ndarray:
        """The column of each used slot, (K + used,) int64.

        Coordinates take columns from low to high sequency: inputs of networks are smooth more often than not, and so
        are the weights that read them (benchmarks/operators.py). Frozen slots are strewn over the lowest quarter first,
        by an affine map with an odd factor, which is a permutation there.
        """
        factor, offset = philox.words(self.seed, 2 * self.group + 1, np.arange(1, dtype=np.int64))[0, :2].tolist()
        order = walsh.order(self.log2_m)
        among = max(self.m // 4, 1 << max(self.K - 1, 0).bit_length())
        frozen = (np.arange(self.K, dtype=np.int64) * (factor | 1) + offset) % among
        others = np.delete(order, frozen)
        return np.concatenate([order[frozen], others[: self.used]])

    @cached_property
    def _grid(self) -> walsh.Grid:
        return walsh.Grid.of(self.columns, self.log2_m)

    def _signs(self, first: int, last: int) -> np.ndarray:
        """Signs of the slots of blocks [first, last), (last - first, K + used) int8: bit b m + j of the stream."""
        out: np.ndarray = philox.bits(self.seed, 2 * self.group, first * self.m, (last - first) * self.m)
        signs = out.reshape(last - first, self.m)[:, : self.K + self.used].view(np.int8)
        return 1 - 2 * signs

    def _readings(self, first: int, last: int) -> np.ndarray | None:
        """The coordinate of each free slot of blocks [first, last): a window that moves on by `free` a block.

        (last - first, used) int64, or None if every block reads all of them in order.
        """
        if self.d <= self.free:
            return None
        start = np.arange(first, last, dtype=np.int64)[:, None] * self.free
        return (start + np.arange(self.free)) % self.d

    def _inputs(self, c: np.ndarray, first: int, last: int, places: np.ndarray, width: int) -> np.ndarray:
        """diag(s_b) c_b of blocks [first, last) with the slots at `places`, (last - first, width) int32."""
        signs = self._signs(first, last)
        reading = self._readings(first, last)
        x = np.zeros((last - first, width), np.int32)
        x[:, places[: self.K]] = self.A * signs[:, : self.K].astype(np.int32)
        x[:, places[self.K :]] = signs[:, self.K :] * (c[: self.used] if reading is None else c[reading])
        return x

    def rows(self, c: Any, lo: int, hi: int) -> Any:
        first, last = lo // self.m, -(-hi // self.m)
        inside = slice(lo - first * self.m, hi - first * self.m)
        integers = (c if isinstance(c, np.ndarray) else c.cpu().numpy()).astype(np.int32)
        if isinstance(c, np.ndarray):
            return walsh.transform(self._inputs(integers, first, last, self.columns, self.m)).reshape(-1)[inside]
        # float64 products: exact for these integers in any order, and no autocast or precision setting touches them.
        x = torch.from_numpy(self._inputs(integers, first, last, self._grid.cells, self._grid.size))
        with torch.autocast(c.device.type, enabled=False):
            y = walsh.expand(x.to(c.device, torch.float64), self._grid.factors(torch.float64, c.device))
        return y.reshape(-1)[inside].float() + 0.0  # + 0.0: -0.0 becomes +0.0

    def peak_at_most(self, largest: int) -> int:
        return self.K * self.A + self.used * largest

    def peak(self, c: np.ndarray) -> int:
        sizes = np.abs(c.astype(np.int64))
        if self.d <= self.free:
            return self.K * self.A + int(sizes.sum())
        # A window's sum is a difference of two prefix sums over the coordinates, twice in a row.
        prefix = np.concatenate([[0], np.cumsum(np.concatenate([sizes, sizes]))])
        # Windows repeat after d blocks at most, so a forged D asks for no more memory than its d.
        start = np.arange(min(self.blocks, self.d), dtype=np.int64) * self.free % self.d
        return self.K * self.A + int((prefix[start + self.free] - prefix[start]).max())

    @cached_property
    def _cache(self) -> dict[tuple[torch.dtype, torch.device], _TrainingTables]:
        return {}

    def _training_tables(self, like: Tensor) -> _TrainingTables:
        """Return the tables for training, of the dtype and on the device of `like`."""
        key = (like.dtype, like.device)
        if key not in self._cache:
            cells = self._grid.cells
            signs = np.zeros((self.blocks, self._grid.size), np.int8)
            signs[:, cells] = self._signs(0, self.blocks)
            reading, placed = self._readings(0, self.blocks), None
            if reading is not None:
                whole = np.zeros((self.blocks, self._grid.size), np.int64)
                whole[:, cells[self.K :]] = reading
                placed = torch.from_numpy(whole).to(like.device)
            self._cache[key] = _TrainingTables(
                torch.from_numpy(signs).to(like.device, like.dtype),
                torch.from_numpy(cells[: self.K]).to(like.device),
                torch.from_numpy(cells[self.K :]).to(like.device),
                placed,
                self._grid.factors(like.dtype, like.device),
            )
        return self._cache[key]

    def _kernel(self, like: Tensor) -> ModuleType | None:
        return kernel(like.device, self, True) if like.dtype == torch.float32 else None

    def matvec(self, z: Tensor) -> Tensor:
        return self._apply(z, 0)

    def affine(self, z: Tensor) -> Tensor:
        return self._apply(z, self.A)

    def write(self, z: Tensor, segments: Sequence[Segment]) -> None:
        if (fast := self._kernel(z)) is None:
            super().write(z, segments)
        else:
            fast.affine(self, z, float(self.A), segments)

    def adjoint(self, pieces: Sequence[Piece]) -> Tensor:
        if (fast := self._kernel(pieces[0][1])) is None:
            return super().adjoint(pieces)
        return fast.adjoint(self, pieces)

    def _apply(self, z: Tensor, frozen: int) -> Tensor:
        """Compute P z with the frozen slots set to `frozen`."""
        if (fast := self._kernel(z)) is not None:
            out = z.new_empty(self.D)
            fast.affine(self, z, float(frozen), [Segment(0, out, 1.0)])
            return out
        k = self._training_tables(z)
        cells = z.new_zeros(self._grid.size).index_copy_(0, k.free, z) if k.reading is None else z[k.reading]
        cells.index_fill_(-1, k.frozen, frozen)
        with torch.autocast(z.device.type, enabled=False):
            return walsh.expand(k.signs * cells, k.factors).view(-1)[: self.D]

    @property
    def padded(self) -> int:
        return self.blocks * self.m

    def rmatvec(self, g: Tensor) -> Tensor:
        if (fast := self._kernel(g)) is not None:
            return fast.adjoint(self, [(0, g[: self.D], 1.0)])
        k = self._training_tables(g)
        padded = g if len(g) == self.padded else torch.nn.functional.pad(g, (0, self.padded - self.D))
        with torch.autocast(g.device.type, enabled=False):
            y = walsh.gather(padded.view(self.blocks, self.m), k.factors).mul_(k.signs)
        if k.reading is None:
            return y.sum(0)[k.free]
        return g.new_zeros(self.d).index_add_(0, k.reading[:, k.free].reshape(-1), y[:, k.free].reshape(-1))

    def start(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        none = torch.zeros(self.d, device=device)
        parts = [self.rows(none, lo, min(lo + CHUNK, self.D)) for lo in range(0, self.D, CHUNK)]
        return torch.cat(parts).to(dtype or torch.float32)


class _TrainingTables(NamedTuple):
    """Tables for training.

    signs: diag(s_b) by cell, (blocks, cells), zero in cells without a slot; frozen, free: the cells of the slots;
    reading: the coordinate of each cell, (blocks, cells), if it differs between blocks; factors: see `walsh.Grid`.
    """

    signs: Tensor
    frozen: Tensor
    free: Tensor
    reading: Tensor | None
    factors: tuple[Tensor, Tensor]

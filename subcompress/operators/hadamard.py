"""Signed Hadamard blocks: the default operator, exact on integers (docs/FORMAT.md, "Operator 1").

    w_b = H_m diag(s_b) E c_b,    b = 0 .. ceil(D / m) - 1

H_m is the m x m Hadamard matrix (Sylvester's, +-1); s_b holds m random signs a block; E places n slots in n seeded
columns; c_b is K frozen constants A and then the coordinates. Relatives: Fastfood (Le, Sarlos, Smola 2013,
arXiv:1408.3060) as used by Li et al. 2018, and the subsampled randomised Hadamard transform (Ailon, Chazelle 2006).
P costs O(D log m) additions, P^T the same; memory is O(D) for the signs and never O(D d).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from subcompress import philox
from subcompress.errors import SubcompressError
from subcompress.operators.base import ExactOperator

MAX_LOG2_M = 20
_CHUNK = 1 << 18  # values expanded at a time: what a core's cache holds


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
                f"a Hadamard block has 1 to 2^{MAX_LOG2_M} rows, fewer frozen slots K than rows and A below 2^15; "
                f"given m = 2^{self.log2_m}, K = {self.K}, A = {self.A}"
            )
        most = min(self.D, self.blocks * self.free)
        if not 1 <= self.d <= most:
            raise SubcompressError(
                f"D = {self.D} weights in blocks of m = {self.m} with K = {self.K} take 1 to {most} coordinates; "
                f"given d = {self.d}: give another d"
            )

    @classmethod
    def sized(cls, D: int, d: int, seed: int) -> HadamardBlocks:
        """m is the smallest power of two that holds every slot, within [2^6, 2^15], and K is 16: of what
        benchmarks/operator.py found level, the fastest."""
        return cls(D, d, seed, min(max((d + 16 - 1).bit_length(), 6), 15))

    @classmethod
    def of(cls, D: int, seed: int, group: int, numbers: Sequence[int]) -> HadamardBlocks:
        d, log2_m, K, A = numbers
        return cls(D, d, seed, log2_m, K, A, group)

    @property
    def m(self) -> int:
        """Rows of a block."""
        return 1 << self.log2_m

    @property
    def blocks(self) -> int:
        """Blocks in D, the last one cut."""
        return -(-self.D // self.m)

    @property
    def free(self) -> int:
        """Slots of a block that are not frozen."""
        return self.m - self.K

    @property
    def used(self) -> int:
        """Slots of a block that hold a coordinate."""
        return min(self.d, self.free)

    @cached_property
    def columns(self) -> np.ndarray:
        """The column of each used slot, (K + used,) int64: an affine map with an odd factor, hence a permutation.

        The lowest k bits of the columns are a permutation of the slots' too, so columns stay orthogonal over the
        first 2^k rows as long as there are no more of them than rows: cut blocks and D < m keep their rank.
        """
        factor, offset = philox.words(self.seed, 2 * self.group + 1, np.arange(1, dtype=np.int64))[0, :2].tolist()
        slots = np.arange(self.K + self.used, dtype=np.int64)
        return (slots * (factor | 1) + offset) % self.m

    def _signs(self, first: int, last: int) -> np.ndarray:
        """Signs of the slots of blocks [first, last), (last - first, K + used) int8: bit b m + j of the stream."""
        out: np.ndarray = philox.bits(self.seed, 2 * self.group, first * self.m, (last - first) * self.m)
        signs = out.reshape(last - first, self.m)[:, : self.K + self.used].view(np.int8)
        return 1 - 2 * signs

    def _readings(self, first: int, last: int) -> np.ndarray | None:
        """The coordinate of each free slot of blocks [first, last): a window that moves on by `free` a block.

        (last - first, used) int64, or None where every block reads all of them in order.
        """
        if self.d <= self.free:
            return None
        start = np.arange(first, last, dtype=np.int64)[:, None] * self.free
        return (start + np.arange(self.free)) % self.d

    def _inputs(self, c: np.ndarray, first: int, last: int) -> np.ndarray:
        """diag(s_b) E c_b of blocks [first, last), (last - first, m) int32."""
        signs = self._signs(first, last)
        reading = self._readings(first, last)
        x = np.zeros((last - first, self.m), np.int32)
        x[:, self.columns[: self.K]] = self.A * signs[:, : self.K].astype(np.int32)
        x[:, self.columns[self.K :]] = signs[:, self.K :] * (c[: self.used] if reading is None else c[reading])
        return x

    def rows(self, c: Any, lo: int, hi: int) -> Any:
        first, last = lo // self.m, -(-hi // self.m)
        inside = slice(lo - first * self.m, hi - first * self.m)
        if isinstance(c, np.ndarray):
            return _transform_numpy(self._inputs(c.astype(np.int32), first, last)).reshape(-1)[inside]
        # float64 products: exact for these integers in any order, and no autocast or precision setting touches them.
        x = torch.from_numpy(self._inputs(c.cpu().numpy().astype(np.int32), first, last)).to(c.device, torch.float64)
        with torch.autocast(c.device.type, enabled=False):
            return transform(x).reshape(-1)[inside].float() + 0.0  # + 0.0: -0.0 becomes +0.0

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
    def _dense(self) -> dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor | None]]:
        return {}

    def _training(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What training keeps, of the dtype and device of `like`: diag(s_b) E as (blocks, m) with zeros in unused
        columns, the columns of the slots, and the readings by column where they differ from block to block."""
        key = (like.dtype, like.device)
        if key not in self._dense:
            signs = np.zeros((self.blocks, self.m), np.int8)
            signs[:, self.columns] = self._signs(0, self.blocks)
            reading, placed = self._readings(0, self.blocks), None
            if reading is not None:
                placed = np.zeros((self.blocks, self.m), np.int64)
                placed[:, self.columns[self.K :]] = reading
            self._dense[key] = (
                torch.from_numpy(signs).to(like.device, like.dtype),
                torch.from_numpy(self.columns).to(like.device),
                None if placed is None else torch.from_numpy(placed).to(like.device),
            )
        return self._dense[key]

    def matvec(self, z: Tensor) -> Tensor:
        return self._apply(z, 0)

    def affine(self, z: Tensor) -> Tensor:
        return self._apply(z, self.A)

    def _apply(self, z: Tensor, frozen: int) -> Tensor:
        """P z with the frozen slots at that value."""
        signs, columns, reading = self._training(z)
        by_column = z[reading] if reading is not None else z.new_zeros(self.m).index_copy_(0, columns[self.K :], z)
        by_column.index_fill_(-1, columns[: self.K], frozen)
        with torch.autocast(z.device.type, enabled=False):
            return transform(signs * by_column).reshape(-1)[: self.D]

    @property
    def padded(self) -> int:
        return self.blocks * self.m

    def rmatvec(self, g: Tensor) -> Tensor:
        signs, columns, reading = self._training(g)
        padded = g if len(g) == self.padded else torch.nn.functional.pad(g, (0, self.padded - self.D))
        with torch.autocast(g.device.type, enabled=False):
            y = transform(padded.view(self.blocks, self.m)).mul_(signs)
        free = columns[self.K :]
        if reading is None:
            return y.sum(0)[free]
        return g.new_zeros(self.d).index_add_(0, reading[:, free].reshape(-1), y[:, free].reshape(-1))

    def start(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        none = torch.zeros(self.d, device=device)
        parts = [self.rows(none, lo, min(lo + _CHUNK, self.D)) for lo in range(0, self.D, _CHUNK)]
        return torch.cat(parts).to(dtype)


def _transform_numpy(x: np.ndarray) -> np.ndarray:
    """H_m times every row of (blocks, m): additions and subtractions of integers, the definition itself."""
    h = 1
    while h < x.shape[1]:
        pairs = x.reshape(x.shape[0], -1, 2, h)
        x = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(x.shape)
        h *= 2
    return x


@lru_cache(maxsize=32)
def _factor(log2_f: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H_f, (f, f)."""
    eye = np.eye(1 << log2_f, dtype=np.int32)
    return torch.from_numpy(_transform_numpy(eye)).to(device, dtype)


def transform(x: Tensor) -> Tensor:
    """H_m times every row of (blocks, m), as products with small Hadamard factors: H_m = H_f (x) H_g (x) ..."""
    shape = x.shape
    left = shape[1].bit_length() - 1
    parts = max(1, -(-left // 6))
    while left:
        log2_f = -(-left // parts)
        left, parts = left - log2_f, parts - 1
        h = _factor(log2_f, x.dtype, x.device)
        # The last factor acts on the fastest axis, as one large product; earlier ones on a middle axis.
        x = x.reshape(-1, 1 << log2_f) @ h if left == 0 else h @ x.reshape(-1, 1 << log2_f, 1 << left)
    return x.reshape(shape)

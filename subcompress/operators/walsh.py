"""Hadamard matrices in two factors, and their columns in order of sequency.

H_m = H_high (x) H_low: row and column numbers split into high and low bits. Sequency, the number of sign changes down a
column, is to Walsh functions what frequency is to sines (Beauchamp, "Walsh Functions and Their Applications", 1975).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def sequency(n: int) -> np.ndarray:
    """Sign changes of each column of H_(2^n), (2^n,) int64: the Gray decoding of the column's bits, lowest first."""
    columns = np.arange(1 << n, dtype=np.int64)
    found, parity = np.zeros_like(columns), np.zeros_like(columns)
    for i in range(n):
        parity ^= columns >> i & 1
        found = 2 * found + parity
    return found


@cache
def order(log2_m: int) -> np.ndarray:
    """The columns of H_m from low to high sequency in both halves of their bits, (m,) int64.

    Sort by the squared distance of (high, low) sequencies, each over its range, from zero; ties by column.
    """
    low, high = log2_m - log2_m // 2, log2_m // 2
    along_low = sequency(low) * ((1 << high) - 1)
    along_high = sequency(high) * ((1 << low) - 1)
    distance = along_high[:, None] ** 2 + along_low**2
    found = np.argsort(distance.reshape(-1), kind="stable")
    found.flags.writeable = False
    return found


@cache
def hadamard(log2_f: int) -> np.ndarray:
    """H_f, (f, f) int8."""
    return transform(np.eye(1 << log2_f, dtype=np.int32)).astype(np.int8)


def transform(x: np.ndarray) -> np.ndarray:
    """H_m times every row of (blocks, m) integers: additions and subtractions, the definition itself."""
    h = 1
    while h < x.shape[1]:
        pairs = x.reshape(x.shape[0], -1, 2, h)
        x = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(x.shape)
        h *= 2
    return x


@dataclass(frozen=True, eq=False)
class Grid:
    """Where chosen columns lie in the product of the high and the low parts that occur among them.

    low, high: those parts, sorted; cells: the place of each chosen column in (high, low), flattened. Transforming the
    grid instead of all columns costs |high| |low| 2^a + |high| m in place of 2^a m + 2^b m: low-sequency columns fill a
    corner, so that half of the parts or fewer occur.
    """

    log2_m: int
    low: np.ndarray
    high: np.ndarray
    cells: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray, log2_m: int) -> Grid:
        """The grid of some columns of H_m."""
        bits = log2_m - log2_m // 2
        low, at_low = np.unique(columns & ((1 << bits) - 1), return_inverse=True)
        high, at_high = np.unique(columns >> bits, return_inverse=True)
        return cls(log2_m, low, high, at_high * len(low) + at_low)

    @property
    def size(self) -> int:
        """Cells, chosen or not."""
        return len(self.low) * len(self.high)

    def factors(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows of H_low and the columns of H_high that occur: (|low|, 2^a) and (2^b, |high|)."""
        bits = self.log2_m - self.log2_m // 2
        pair = hadamard(bits)[self.low], hadamard(self.log2_m - bits)[:, self.high]
        low, high = (torch.from_numpy(np.ascontiguousarray(f)).to(device, dtype) for f in pair)
        return low, high


def expand(x: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
    """H times the grid's columns: (blocks, cells) -> (blocks, m)."""
    low, high = factors
    part = (x.reshape(-1, len(low)) @ low).view(len(x), high.shape[1], low.shape[1])
    return (high @ part).view(len(x), -1)


def gather(y: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
    """The adjoint of `expand`: (blocks, m) -> (blocks, cells)."""
    low, high = factors
    part = high.T @ y.view(len(y), len(high), low.shape[1])
    return (part.view(-1, low.shape[1]) @ low.T).view(len(y), -1)

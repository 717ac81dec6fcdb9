"""Haar wavelets, a reference: exact in integers, but no file holds them, and it cannot be packed.

    w_b = W_m diag(a) E_b c,    b = 0 .. ceil(D / m) - 1

W_m is the m x m Haar matrix (Haar, "Zur Theorie der orthogonalen Funktionensysteme", Math. Ann. 69, 1910): atom 0 is 1
everywhere; atom 2^l + k, 0 <= k < 2^l, is +1 on the first half of the k-th of 2^l equal intervals, -1 on its second
half, else 0. E_b places the coordinates, with random signs, at d atoms that the seed draws for each block. Sparse
random coefficients of wavelets are WaveFT's (Bilican et al. 2025, "Exploring Sparsity for Parameter Efficient Fine
Tuning Using Wavelets", arXiv:2505.12532), there of each matrix, in two dimensions; with m >= D there is one block here,
of all weights as one line.

An atom of level l that is as long as the others has the amplitude 2^(l/2); a_l is the integer next to it, so that
integer coordinates give integer weights: lengths differ by 6 % at most (l = 1: more). P costs O(D), memory is O(D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from subcompress.operators import philox
from subcompress.operators.blocked import BlockedReference, block_bits
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HaarWavelets(BlockedReference):
    """m = 2^log2_m rows a block; in each block, as many atoms as there are coordinates."""

    log2_m: int = 10

    @classmethod
    def sized(cls, D: int, d: int, seed: int) -> Self:
        """With blocks of the size that `block_bits` says."""
        return cls(D, d, seed, block_bits(D, d))

    @property
    def bits(self) -> int:
        return self.log2_m

    @property
    def row_norm(self) -> float:
        squares = self.amplitudes.astype(np.float64) ** 2
        supports = np.concatenate([[self.m], self.m >> np.arange(self.log2_m).repeat(1 << np.arange(self.log2_m))])
        return math.sqrt(self.d * float((squares * supports).mean()) / self.m)

    @cached_property
    def amplitudes(self) -> np.ndarray:
        """The amplitude of each atom, (m,) int64: of level l, the integer next to 2^(l / 2)."""
        levels = [(math.isqrt(4 << level) + 1) // 2 for level in range(self.log2_m)]
        return np.array([1, *(a for level, a in enumerate(levels) for _ in range(1 << level))], np.int64)

    @cached_property
    def atoms(self) -> np.ndarray:
        """The atom of each coordinate in each block, (blocks, d) int64: the permutation of `ScatteredBlocks`, drawn
        for each block."""
        words = philox.words(self.seed, 0, np.arange(self.blocks, dtype=np.int64)).astype(np.uint64)
        factor, offset, *factors = (words[:, i : i + 1] for i in range(4))
        last, shift = np.uint64(self.m - 1), np.uint64((self.log2_m + 1) // 2)
        found = ((factor | np.uint64(1)) * np.arange(self.d, dtype=np.uint64) + offset) & last
        for f in factors:
            found = ((found ^ found >> shift) * (f | np.uint64(1))) & last
        return found.astype(np.int64)

    @cached_property
    def entries(self) -> np.ndarray:
        """Signs times amplitudes of `atoms`, (blocks, d) int64."""
        signs = 1 - 2 * philox.bits(self.seed, 1, 0, self.blocks * self.d).view(np.int8).astype(np.int64)
        return signs.reshape(self.blocks, self.d) * self.amplitudes[self.atoms]

    def _training_tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """`atoms`, and `entries` of the dtype and on the device of `like`."""
        atoms, entries = torch.from_numpy(self.atoms), torch.from_numpy(self.entries)
        return atoms.to(like.device), entries.to(like.device, like.dtype)

    def matvec(self, z: Tensor) -> Tensor:
        atoms, entries = self._once(z, self._training_tables)
        x = z.new_zeros(self.blocks, self.m).scatter_(1, atoms, entries * z)
        y = x[:, :1]
        for level in range(self.log2_m):
            detail = x[:, 1 << level : 2 << level]
            y = torch.stack([y + detail, y - detail], 2).view(self.blocks, -1)
        return y.reshape(-1)[: self.D]

    def rmatvec(self, g: Tensor) -> Tensor:
        atoms, entries = self._once(g, self._training_tables)
        y = torch.nn.functional.pad(g, (0, self.padded - len(g))).view(self.blocks, self.m)
        details = []
        for _ in range(self.log2_m):
            pairs = y.view(self.blocks, -1, 2)
            y = pairs.sum(2)
            details.append(pairs[:, :, 0] - pairs[:, :, 1])
        x = torch.cat([y, *details[::-1]], 1)
        return (x.gather(1, atoms) * entries).sum(0)

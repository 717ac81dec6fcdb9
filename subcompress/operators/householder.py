"""Products of Householder reflections, a reference: exact in integers, but no file holds them, and it cannot be packed.

    w_b = R_k ... R_2 R_1 S_b E c,    b = 0 .. ceil(D / m) - 1,    m = 4^k
    R_t = product over m / 4 groups of four rows of 2 (I - v v^T / 2)

v is +-1, at random, on the four rows of its group and zero elsewhere, so that I - v v^T / 2 is the reflection
I - 2 v v^T / (v^T v) (Householder, "Unitary triangularization of a nonsymmetric matrix", J. ACM 5, 1958).
Chains of reflections turn weights in HRA (Yuan, Liu, Xu 2024, arXiv:2405.17484); here they are the
projection. The rows of a group of R_t differ in the t-th pair of bits of their number, hence each row meets each other
one. S_b holds random signs (reflections too, along an axis), E places the coordinates in the first d columns.

A reflection whose v has a power of two of entries +-1 is dyadic; with four, twice the reflection is +-1 in every entry
of the group. So is the product: P is +-1, whole blocks of it are exactly orthogonal, and integer coordinates give
integer weights. P costs O(D log m) additions, memory is O(D log m) signs.
"""

from __future__ import annotations

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
class HouseholderProduct(BlockedReference):
    """m = 4^stages rows a block."""

    stages: int = 5

    @classmethod
    def sized(cls, D: int, d: int, seed: int) -> Self:
        """m is the smallest power of four that is no smaller than the blocks of the other operators, but no larger than
        D where that is at least d."""
        stages = -(-block_bits(D, d) // 2)
        if 1 << 2 * stages > D and 1 << 2 * stages - 2 >= d:
            stages -= 1
        return cls(D, d, seed, stages)

    @property
    def bits(self) -> int:
        return 2 * self.stages

    @cached_property
    def signs(self) -> np.ndarray:
        """S and the vectors v of each stage, by block and row, (1 + stages, blocks, m) int8."""
        shape = 1 + self.stages, self.blocks, self.m
        found = [1 - 2 * philox.bits(self.seed, stage, 0, self.padded).view(np.int8) for stage in range(shape[0])]
        return np.stack(found).reshape(shape)

    def _training_tables(self, like: Tensor) -> list[Tensor]:
        """`signs` by stage, of the dtype and on the device of `like`; those of a stage as (groups, 4, rows between)."""
        first, *others = torch.from_numpy(self.signs).to(like.device, like.dtype)
        return [first[:, : self.d], *(v.view(-1, 4, 1 << 2 * stage) for stage, v in enumerate(others))]

    def matvec(self, z: Tensor) -> Tensor:
        first, *stages = self._once(z, self._training_tables)
        x = torch.nn.functional.pad(first * z, (0, self.m - self.d))
        for v in stages:
            x = _reflected(x.view(v.shape), v)
        return x.reshape(-1)[: self.D]

    def rmatvec(self, g: Tensor) -> Tensor:
        first, *stages = self._once(g, self._training_tables)
        x = torch.nn.functional.pad(g, (0, self.padded - len(g)))
        for v in stages[::-1]:
            x = _reflected(x.view(v.shape), v)
        return (x.reshape(self.blocks, self.m)[:, : self.d] * first).sum(0)


def _reflected(x: Tensor, v: Tensor) -> Tensor:
    """2 (I - v v^T / 2) x of each group of four rows, in an axis of its own."""
    return 2 * x - v * (v * x).sum(1, keepdim=True)

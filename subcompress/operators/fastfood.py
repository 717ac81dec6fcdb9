"""Fastfood, a reference: not exact between devices, and it cannot be packed.

    V_b = H G_b Pi_b H B_b / |g_b|,    b = 0 .. ceil(D / l) - 1

Le, Sarlos, Smola 2013 (arXiv:1408.3060), as used by Li et al. 2018 (arXiv:1804.08838). l is d padded to a power of two;
H is the l x l Hadamard matrix (Sylvester's, +-1), B_b random signs, Pi_b a random permutation, G_b = diag(g_b) standard
normals. P is the first d columns of the blocks, stacked and cut to D rows. Dividing by |g_b| instead of the random
lengths S_b of Le et al. is Li et al.'s: every row of V_b is sqrt(l) long. P costs two Walsh-Hadamard transforms of D
numbers, memory is O(D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from subcompress.operators import philox, walsh
from subcompress.operators.dense import Reference, normals, words
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Fastfood(Reference):
    """Li et al.'s code takes one block, as long as all weights of a tensor; their text and this file stack shorter
    ones, as Le et al. do."""

    @property
    def log2_l(self) -> int:
        """l = 2^log2_l: rows and columns of a block."""
        return (self.d - 1).bit_length()

    @property
    def blocks(self) -> int:
        """Blocks in D, the last one cut."""
        return -(-self.D >> self.log2_l)

    def draws(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw B, Pi and G, (blocks, l) each: signs; the slot that each slot reads; g_b / |g_b|."""
        shape = self.blocks, 1 << self.log2_l
        count = shape[0] * shape[1]
        signs = 1 - 2 * philox.bits(self.seed, 0, 0, count).view(np.int8).reshape(shape)
        reads = np.argsort(words(self.seed, 1, 0, count).reshape(shape), axis=1, kind="stable")
        g = normals(self.seed, 2, 0, count).reshape(shape)
        return signs, reads, g / np.linalg.norm(g, axis=1, keepdims=True)

    def _training_tables(self, like: Tensor) -> _TrainingTables:
        """Return the tables for training, of the dtype and on the device of `like`."""
        signs, reads, g = self.draws()
        reads += np.arange(self.blocks)[:, None] << self.log2_l
        return _TrainingTables(
            torch.from_numpy(signs).to(like.device, like.dtype),
            torch.from_numpy(reads.reshape(-1)).to(like.device),
            torch.from_numpy(g).to(like.device, like.dtype),
            walsh.Grid.of(np.arange(1 << self.log2_l), self.log2_l).factors(like.dtype, like.device),
        )

    def matvec(self, z: Tensor) -> Tensor:
        k = self._once(z, self._training_tables)
        with torch.autocast(z.device.type, enabled=False):
            x = walsh.expand(k.signs * torch.nn.functional.pad(z, (0, k.signs.shape[1] - self.d)), k.factors)
            y = x.view(-1).index_select(0, k.reads).view_as(x).mul_(k.g)
            return walsh.expand(y, k.factors).view(-1)[: self.D]

    def rmatvec(self, g: Tensor) -> Tensor:
        k = self._once(g, self._training_tables)
        with torch.autocast(g.device.type, enabled=False):
            y = torch.nn.functional.pad(g, (0, k.signs.numel() - self.D)).view_as(k.signs)
            y = walsh.gather(y, k.factors).mul_(k.g)
            x = torch.empty_like(y).view(-1).index_copy_(0, k.reads, y.view(-1)).view_as(y)
            return walsh.gather(x, k.factors).mul_(k.signs).sum(0)[: self.d]


class _TrainingTables(NamedTuple):
    """Tables for training. signs, g: B and G, (blocks, l); reads: Pi as indices of the flattened blocks, (blocks l,);
    factors: those of H (`walsh.Grid`)."""

    signs: Tensor
    reads: Tensor
    g: Tensor
    factors: tuple[Tensor, Tensor]

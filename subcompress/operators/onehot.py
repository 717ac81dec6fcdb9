"""One coordinate a weight, a reference: not exact between devices, and it cannot be packed.

    P_ij = sqrt(D / n_j) if weight i reads coordinate j, else 0;    n_j weights read coordinate j

Uni-LoRA (Li et al., "Uni-LoRA: One Vector is All You Need", NeurIPS 2025, arXiv:2506.00799): entries 1 / sqrt(n_j)
without signs, so that P^T P = I; here it is D I, as for the other references. Their code draws the coordinate of every
weight by itself, which may leave some unread (github.com/KaiyangLi1992/Uni-LoRA); this file shuffles a balanced
assignment, as Uni-LoRA in Hugging Face PEFT does: n_j is D / d, rounded down or up. P costs O(D) and keeps as much.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from subcompress.operators.dense import Reference, permutation
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class OneHot(Reference):
    """Weight i reads coordinate pi(i) mod d, pi a random permutation of the weights."""

    @cached_property
    def columns(self) -> np.ndarray:
        """The coordinate of each weight, (D,) int32."""
        return (permutation(self.seed, 0, self.D) % self.d).astype(np.int32)

    def _training_tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """`columns`, and the entry of P in each column, (d,), of the dtype and device of `like`."""
        entries = np.sqrt(self.D / np.bincount(self.columns, minlength=self.d))
        return torch.from_numpy(self.columns).to(like.device), torch.from_numpy(entries).to(like.device, like.dtype)

    def matvec(self, z: Tensor) -> Tensor:
        columns, entries = self._once(z, self._training_tables)
        return (z * entries).index_select(0, columns)

    def rmatvec(self, g: Tensor) -> Tensor:
        columns, entries = self._once(g, self._training_tables)
        return g.new_zeros(self.d).index_add_(0, columns, g).mul_(entries)

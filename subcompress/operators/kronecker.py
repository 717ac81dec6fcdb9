"""Kronecker product of two small orthonormal matrices, a reference: not exact between devices, and it cannot be packed.

    P = D random rows and d random columns of r (Q_1 (x) Q_2),    Q_i: (r, k),    r = ceil(sqrt D), k = ceil(sqrt d)

Lotfi et al. 2022, "PAC-Bayes Compression Bounds So Tight That They Can Explain Generalization" (arXiv:2211.13609), the
projector RDKronQR of their code (github.com/activatedgeek/tight-pac-bayes): Q_i is the orthonormal factor of a Gaussian
matrix, and a random permutation spreads the rows over the weights. Their code rounds r and k down and gives what is
left of D and d to a Gaussian block, which leaves weights without coordinates, or coordinates without weights, where one
of the two is a square. Here both are rounded up and cut, so that P^T P is D I up to the rows cut; columns are cut at
random too, because the first d would be linearly dependent where d is close to D. P costs O(D sqrt d) and keeps
O(sqrt(D d)) numbers beside the permutation.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from subcompress.operators.dense import Reference, normals, permutation
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class KroneckerProduct(Reference):
    """Entry (i, j) of P is entry (rows[i], columns[j]) of the product."""

    @property
    def r(self) -> int:
        """Rows of either factor."""
        return math.isqrt(self.D - 1) + 1

    @property
    def k(self) -> int:
        """Columns of either factor."""
        return math.isqrt(self.d - 1) + 1

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of the product that each weight reads, (D,) int64 below r^2."""
        return permutation(self.seed, 0, self.r**2)[: self.D]

    @cached_property
    def columns(self) -> np.ndarray:
        """The column of the product that each coordinate is, (d,) int64 below k^2."""
        return permutation(self.seed, 3, self.k**2)[: self.d]

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """sqrt(r) Q_1 and sqrt(r) Q_2, (r, k) float64 each: entries have a mean square of one."""
        first, second = (self._factor(stream) for stream in (1, 2))
        return first, second

    def _factor(self, stream: int) -> np.ndarray:
        gaussian = normals(self.seed, stream, 0, self.r * self.k).reshape(self.r, self.k)
        q, triangle = np.linalg.qr(gaussian.astype(np.float64))
        # The signs of a column are the library's choice; a positive diagonal of the triangle makes them unique.
        return math.sqrt(self.r) * q * np.sign(np.diag(triangle))

    @cached_property
    def _cache(self) -> dict[tuple[torch.dtype, torch.device], _TrainingTables]:
        return {}

    def _training_tables(self, like: Tensor) -> _TrainingTables:
        """What training keeps, of the dtype and device of `like`."""
        key = (like.dtype, like.device)
        if key not in self._cache:
            first, second = (torch.from_numpy(q).to(like.device, like.dtype) for q in self.factors())
            rows, columns = (torch.from_numpy(chosen).to(like.device) for chosen in (self.rows, self.columns))
            self._cache[key] = _TrainingTables(rows, columns, first, second)
        return self._cache[key]

    def matvec(self, z: Tensor) -> Tensor:
        k = self._training_tables(z)
        with torch.autocast(z.device.type, enabled=False):
            grid = z.new_zeros(self.k**2).index_copy_(0, k.columns, z).view(self.k, self.k)
            return (k.first @ grid @ k.second.T).view(-1).index_select(0, k.rows)

    def rmatvec(self, g: Tensor) -> Tensor:
        k = self._training_tables(g)
        with torch.autocast(g.device.type, enabled=False):
            grid = g.new_zeros(self.r**2).index_copy_(0, k.rows, g).view(self.r, self.r)
            return (k.first.T @ grid @ k.second).view(-1).index_select(0, k.columns)


class _TrainingTables(NamedTuple):
    """rows, columns: see `KroneckerProduct`; first, second: the factors, (r, k)."""

    rows: Tensor
    columns: Tensor
    first: Tensor
    second: Tensor

"""Very sparse random projection, a reference: not exact between devices, and it cannot be packed.

    P_ij = +-D^(1/4) with probability 1 / sqrt(D), half of it for each sign; else 0

Li, Hastie, Church, "Very sparse random projections", KDD 2006, as used by Li et al. 2018 (arXiv:1804.08838), "sparse".
Entries have unit variance. Nonzeros, about sqrt(D) d of them, are what a product costs and what is kept. A row without
any is a weight that never moves: where d is below sqrt(D) that is many of them.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from subcompress.operators import philox
from subcompress.operators.dense import Reference, words
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_DRAWS = 1 << 16  # gaps drawn at a time


class SparseProjection(Reference):
    """Nonzeros are found by the gaps between them, which are geometric: nothing of the order of D d is drawn."""

    @cached_property
    def _nonzeros(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and columns, int32, and signs, int8, each (nonzeros,), in the order of the entries of P."""
        total = self.D * self.d
        # A gap of g has the probability (1 - p)^(g - 1) p; with D = 1 there are no zeros, and every gap is one.
        scale = 1 / math.log1p(-1 / math.sqrt(self.D)) if self.D > 1 else 0.0
        rows, columns, last, drawn = [], [], -1, 0
        while last < total:
            u = (words(self.seed, 0, drawn, _DRAWS) + 0.5) * 2**-32
            places = last + np.cumsum((np.log(u) * scale).astype(np.int64) + 1)
            last, drawn = int(places[-1]), drawn + _DRAWS
            row, column = np.divmod(places[places < total], self.d)
            rows.append(row.astype(np.int32))
            columns.append(column.astype(np.int32))
        row = np.concatenate(rows)
        signs = 1 - 2 * philox.bits(self.seed, 1, 0, len(row)).view(np.int8)
        return row, np.concatenate(columns), signs

    @cached_property
    def _cache(self) -> dict[torch.device, _TrainingTables]:
        return {}

    def _on(self, device: torch.device) -> _TrainingTables:
        if device not in self._cache:
            self._cache[device] = _TrainingTables(*(torch.from_numpy(array).to(device) for array in self._nonzeros))
        return self._cache[device]

    def matvec(self, z: Tensor) -> Tensor:
        k = self._on(z.device)
        terms = z.index_select(0, k.columns).mul_(k.signs)
        return z.new_zeros(self.D).index_add_(0, k.rows, terms).mul_(self.D**0.25)

    def rmatvec(self, g: Tensor) -> Tensor:
        k = self._on(g.device)
        terms = g.index_select(0, k.rows).mul_(k.signs)
        return g.new_zeros(self.d).index_add_(0, k.columns, terms).mul_(self.D**0.25)


class _TrainingTables(NamedTuple):
    """The nonzeros of P on a device, see `_nonzeros`."""

    rows: Tensor
    columns: Tensor
    signs: Tensor

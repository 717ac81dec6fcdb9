"""Tucker core spaces of kernels, a reference: not exact between devices, and it cannot be packed.

    W = G x_1 U_1 x_2 U_2 ... x_N U_N,    U_k: (n_k, r_k),    G = S z

Each tensor W, (n_1, ..., n_N), has a Tucker decomposition in its own axes (Tucker 1966, "Some mathematical notes on
three-mode factor analysis", Psychometrika 31). FLoRA (Si et al. 2024, "FLoRA: Low-Rank Core Space for N-dimension",
arXiv:2405.14739) fine-tunes kernels so and trains the U_k too; here these are random and frozen, U_k the
orthonormal factor of a Gaussian matrix, and z acts on the core G alone, which makes W linear in z. All tensors share
all coordinates, as with the other operators: S places each at a cell of each core, by a permutation and signs of the
tensor's own, several at a cell where there are fewer cells. Ranks are alike in all axes where these are long enough,
with as few cells as hold d.

A tensor of one axis has no structure of its own: its weights are shuffled and laid into a cube. P costs
O(D (r_1 + ... + r_N)), and memory is that of the factors beside O(D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from subcompress.operators import philox
from subcompress.operators.dense import Reference, normals, permutation
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

FOLDED = 3
"""Axes of the cube that a tensor of one axis is laid into."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TuckerCore(Reference):
    """shapes: those of the tensors, in order; by default all weights are one tensor of one axis."""

    shapes: Shapes = ()

    @classmethod
    def shaped(cls, shapes: Sequence[tuple[int, ...]], d: int, seed: int) -> Self:
        return cls(sum(map(math.prod, shapes)), d, seed, tuple(map(tuple, shapes)))

    @cached_property
    def cores(self) -> list[Core]:
        """The core of each tensor."""
        return [Core.of(shape, self.d, self.seed, number) for number, shape in enumerate(self.shapes or ((self.D,),))]

    def _training_tables(self, like: Tensor) -> list[_TrainingTables]:
        return [core.tables(like) for core in self.cores]

    def matvec(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return torch.cat([k.expand(z) for k in self._once(z, self._training_tables)])

    def rmatvec(self, g: Tensor) -> Tensor:
        tables, out = self._once(g, self._training_tables), g.new_zeros(self.d)
        with torch.autocast(g.device.type, enabled=False):
            for k, part in zip(tables, g.split([core.n for core in self.cores]), strict=True):
                out += k.gather(part)
        return out


class Core(NamedTuple):
    """One tensor's core. n: weights; sides: its axes; ranks: those of the core; places: where each weight
    lies among those axes, (n,), None if it is in order; cells: where each coordinate lies in the core, (d,); signs:
    with which sign, (d,); factors: sqrt(n_k) U_k, so that entries of P have a mean square of one."""

    n: int
    sides: tuple[int, ...]
    ranks: tuple[int, ...]
    places: np.ndarray | None
    cells: np.ndarray
    signs: np.ndarray
    factors: list[np.ndarray]

    @classmethod
    def of(cls, shape: tuple[int, ...], d: int, seed: int, number: int) -> Core:
        """The core of a tensor; its random streams are of its number."""
        n, sides, stream = math.prod(shape), tuple(side for side in shape if side > 1), number << 8
        places = None
        if len(sides) < 2:
            sides = (_root(n),) * FOLDED
            places = permutation(seed, stream, math.prod(sides))[:n]
        ranks = ranks_of(sides, d)
        size = math.prod(ranks)
        cells = permutation(seed, stream + 1, max(d, size))[:d] % size
        signs = 1 - 2 * philox.bits(seed, stream + 2, 0, d).view(np.int8)
        factors = [
            _factor(seed, stream + 3 + k, side, rank) for k, (side, rank) in enumerate(zip(sides, ranks, strict=True))
        ]
        return cls(n, sides, ranks, places, cells, signs, factors)

    def tables(self, like: Tensor) -> _TrainingTables:
        """What training keeps, of the dtype and on the device of `like`."""
        places = None if self.places is None else torch.from_numpy(self.places).to(like.device)
        cells = torch.from_numpy(self.cells).to(like.device)
        signs, *factors = (torch.from_numpy(x).to(like.device, like.dtype) for x in (self.signs, *self.factors))
        return _TrainingTables(self.ranks, self.sides, places, cells, signs, factors)


class _TrainingTables(NamedTuple):
    """See `Core`."""

    ranks: tuple[int, ...]
    sides: tuple[int, ...]
    places: Tensor | None
    cells: Tensor
    signs: Tensor
    factors: list[Tensor]

    def expand(self, z: Tensor) -> Tensor:
        """The tensor's weights, (d,) -> (n,)."""
        x = z.new_zeros(math.prod(self.ranks)).index_add_(0, self.cells, self.signs * z).view(self.ranks)
        for axis, factor in enumerate(self.factors):
            x = torch.tensordot(factor, x.movedim(axis, 0), 1).movedim(0, axis)
        flat = x.reshape(-1)
        return flat if self.places is None else flat.index_select(0, self.places)

    def gather(self, g: Tensor) -> Tensor:
        """The adjoint of `expand`, (n,) -> (d,)."""
        if self.places is not None:
            g = g.new_zeros(math.prod(self.sides)).index_copy_(0, self.places, g)
        x = g.view(self.sides)
        for axis, factor in enumerate(self.factors):
            x = torch.tensordot(factor.T, x.movedim(axis, 0), 1).movedim(0, axis)
        return x.reshape(-1).index_select(0, self.cells) * self.signs


def ranks_of(sides: Sequence[int], d: int) -> tuple[int, ...]:
    """Return the ranks of a core of at least d cells, or of all that there are: alike where sides allow."""
    ranks = [1] * len(sides)
    while math.prod(ranks) < min(d, math.prod(sides)):
        shortest = min((axis for axis, side in enumerate(sides) if ranks[axis] < side), key=ranks.__getitem__)
        ranks[shortest] += 1
    return tuple(ranks)


def _factor(seed: int, stream: int, side: int, rank: int) -> np.ndarray:
    """sqrt(n) U of an axis, (n, r) float64, with orthogonal columns."""
    q, triangle = np.linalg.qr(normals(seed, stream, 0, side * rank).reshape(side, rank).astype(np.float64))
    # The signs of a column are the library's choice; a positive diagonal of the triangle makes them unique.
    return np.asarray(math.sqrt(side) * q * np.sign(np.diag(triangle)))


def _root(n: int) -> int:
    """The smallest side of a cube that holds n weights."""
    side = round(n ** (1 / FOLDED))
    while side**FOLDED < n:
        side += 1
    while (side - 1) ** FOLDED >= n:
        side -= 1
    return side

"""The contract of an operator P: (d,) -> (D,), and what follows from it.

theta = theta_0 + P z (Li et al. 2018, arXiv:1804.08838, equation 2). An operator gives `matvec`, `rmatvec` and the
frozen `start`; being differentiable, twice, is derived from these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from subcompress.operators.kernels import Piece, Segment
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 18
"""Weights expanded at a time: what a core's cache holds."""


class Operator(ABC):
    """A linear map from d coordinates to D weights that depends on nothing but its sizes and its seed."""

    exact: ClassVar[bool] = False
    """True where integer coordinates give the same integers on every device, so that a file may hold them."""

    has_start: ClassVar[bool] = False
    """True where the operator brings a random start of its own; elsewhere the network's is used."""

    D: int
    d: int
    seed: int

    @classmethod
    @abstractmethod
    def sized(cls, D: int, d: int, seed: int) -> Operator:
        """The operator of these sizes, everything else at its default. Raises SubcompressError where d does not fit."""

    @abstractmethod
    def matvec(self, z: Tensor) -> Tensor:
        """P z, (d,) -> (D,), in the dtype and on the device of z."""

    @abstractmethod
    def rmatvec(self, g: Tensor) -> Tensor:
        """P^T g, (D,) -> (d,), in the dtype and on the device of g."""

    def start(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """The frozen part that is added to P z, (D,), float32 by default: zero unless the operator brings a random
        start."""
        return torch.zeros(self.D, dtype=dtype or torch.float32, device=device)

    def affine(self, z: Tensor) -> Tensor:
        """start + P z, (d,) -> (D,), a tensor of its own."""
        return self.start(z.dtype, z.device) + self.matvec(z)

    def write(self, z: Tensor, segments: Sequence[Segment]) -> None:
        """start + scale * (frozen part + P z) into each segment's rows, with no gradient."""
        theta = self.affine(z)
        for s in segments:
            s.out.copy_(theta[s.lo : s.hi].mul_(s.scale).add_(s.start))

    def adjoint(self, pieces: Sequence[Piece]) -> Tensor:
        """P^T of scale * g at the rows of each piece, zero at all others: (d,), with no gradient."""
        g = pieces[0][1]
        whole = torch.zeros(self.padded, dtype=g.dtype, device=g.device)
        for lo, g, scale in pieces:
            torch.mul(g, scale, out=whole[lo : lo + len(g)])
        return self.rmatvec(whole)

    @property
    @abstractmethod
    def row_norm(self) -> float:
        """Root mean square length of the rows of P: coordinates that move by one, each in a direction of its own, move
        a weight by so much."""

    @property
    def padded(self) -> int:
        """A length above D that `rmatvec` takes as well, for less copying; what lies beyond D is zero."""
        return self.D

    def __call__(self, z: Tensor) -> Tensor:
        """P z with its gradient P^T, (d,) -> (D,)."""
        from subcompress.operators.gradients import matvec

        return matvec(z, self)


class ExactOperator(Operator):
    """An operator whose integers a file may hold: `rows` gives the same values for NumPy and torch, on any device."""

    exact: ClassVar[bool] = True
    code: ClassVar[int]
    """Its number in a file; never given twice."""
    name: ClassVar[str]
    limits: ClassVar[dict[str, int]]
    """The parameters that a file stores beside seed, D and group, with their largest values; d comes first."""

    @property
    def block(self) -> int:
        """Rows that are expanded together at least: slices that begin and end at its multiples waste nothing."""
        return 1

    @abstractmethod
    def rows(self, c: Any, lo: int, hi: int) -> Any:
        """Rows [lo, hi) of the frozen start plus P c, (d,) -> (hi - lo,), integers below 2^16 in absolute value.

        A NumPy c gives NumPy int32, a torch c gives float32 on its device: the same numbers, whatever the precision
        settings, autocast, threads, and however the rows are sliced.
        """

    @abstractmethod
    def peak(self, c: np.ndarray) -> int:
        """The largest sum of absolute integers that a row adds, frozen ones included: below 2^16 in a valid file."""

    def peak_at_most(self, largest: int) -> int:
        """What `peak` does not exceed for coordinates of at most that absolute value; 2^16 where only `peak` tells."""
        return 1 << 16

    @classmethod
    @abstractmethod
    def of(cls, D: int, seed: int, group: int, numbers: Sequence[int]) -> ExactOperator:
        """The operator that a file describes: `numbers` are the values of `limits`. Raises SubcompressError."""

    def parameters(self) -> tuple[int, ...]:
        """The values of `limits`, in its order."""
        return tuple(getattr(self, name) for name in self.limits)

"""The interface of an operator P: (d,) -> (D,), and the methods that derive from it.

theta = theta_0 + P z (Li et al. 2018, arXiv:1804.08838, equation 2). An operator gives `matvec`, `rmatvec` and the
frozen `start`; being differentiable, twice, is derived from these.
"""

from __future__ import annotations

import math
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
    """A linear map from d coordinates to D weights that is determined by its sizes and its seed."""

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
        """Return the operator of these sizes with default parameters. Raises SubcompressError if d does not fit."""

    @classmethod
    def shaped(cls, shapes: Sequence[tuple[int, ...]], d: int, seed: int) -> Operator:
        """Return the operator of tensors of these shapes, end to end; most need no more than their size in all. Raises
        SubcompressError if d does not fit."""
        return cls.sized(sum(map(math.prod, shapes)), d, seed)

    @abstractmethod
    def matvec(self, z: Tensor) -> Tensor:
        """Compute P z, (d,) -> (D,), in the dtype and on the device of z."""

    @abstractmethod
    def rmatvec(self, g: Tensor) -> Tensor:
        """Compute P^T g, (D,) -> (d,), in the dtype and on the device of g."""

    def start(self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """Return the frozen part that is added to P z, (D,), float32 by default; zero unless the operator has a random
        start."""
        return torch.zeros(self.D, dtype=dtype or torch.float32, device=device)

    def affine(self, z: Tensor) -> Tensor:
        """Compute start + P z, (d,) -> (D,), as a new tensor."""
        return self.start(z.dtype, z.device) + self.matvec(z)

    def write(self, z: Tensor, segments: Sequence[Segment]) -> None:
        """Write start + scale * (frozen part + P z) to each segment's rows, without gradients."""
        theta = self.affine(z)
        for s in segments:
            s.out.copy_(theta[s.lo : s.hi].mul_(s.scale).add_(s.start))

    def adjoint(self, pieces: Sequence[Piece]) -> Tensor:
        """Compute P^T applied to scale * g at the rows of each piece and zero elsewhere: (d,), without gradients."""
        g = pieces[0][1]
        whole = torch.zeros(self.padded, dtype=g.dtype, device=g.device)
        for lo, g, scale in pieces:
            torch.mul(g, scale, out=whole[lo : lo + len(g)])
        return self.rmatvec(whole)

    @property
    @abstractmethod
    def row_norm(self) -> float:
        """Return the root mean square norm of the rows of P.

        If each coordinate moves by one in an independent direction, a weight moves by this much.
        """

    @property
    def padded(self) -> int:
        """A length of at least D that `rmatvec` accepts too, to avoid a copy; the values beyond D are zero."""
        return self.D

    def __call__(self, z: Tensor) -> Tensor:
        """Compute P z, (d,) -> (D,), differentiable, with the gradient P^T."""
        from subcompress.operators.gradients import matvec

        return matvec(z, self)


class ExactOperator(Operator):
    """An operator with integer rows that a file may use: `rows` gives the same values with NumPy and torch on any
    device."""

    exact: ClassVar[bool] = True
    code: ClassVar[int]
    """Its number in a file; never given twice."""
    name: ClassVar[str]
    limits: ClassVar[dict[str, int]]
    """The parameters that a file stores beside seed, D and group, with their largest values; d comes first."""

    @property
    def block(self) -> int:
        """The fewest rows that are expanded together; ranges aligned to its multiples waste no work."""
        return 1

    @abstractmethod
    def rows(self, c: Any, lo: int, hi: int) -> Any:
        """Rows [lo, hi) of the frozen start plus P c, (d,) -> (hi - lo,), integers below 2^16 in absolute value.

        A NumPy c gives NumPy int32, a torch c gives float32 on its device: the same numbers, whatever the precision
        settings, autocast, threads, and however the rows are sliced.
        """

    @abstractmethod
    def peak(self, c: np.ndarray) -> int:
        """Return the largest sum of absolute integers in a row, frozen ones included; below 2^16 in a valid file."""

    def peak_at_most(self, largest: int) -> int:
        """Return an upper bound of `peak` for coordinates of at most that absolute value; 2^16 if unknown."""
        return 1 << 16

    @classmethod
    @abstractmethod
    def of(cls, D: int, seed: int, group: int, numbers: Sequence[int]) -> ExactOperator:
        """Return the operator that a file describes; `numbers` are the values of `limits`. Raises SubcompressError."""

    def parameters(self) -> tuple[int, ...]:
        """Return the values of `limits`, in order."""
        return tuple(getattr(self, name) for name in self.limits)

"""An operator's products with their gradients, of any order: each is the other's."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Products(Protocol):
    """P z and P^T g, of an operator."""

    def matvec(self, z: Tensor) -> Tensor:
        """(d,) -> (D,)."""

    def rmatvec(self, g: Tensor) -> Tensor:
        """(D,) -> (d,)."""


def matvec(z: Tensor, op: Products) -> Tensor:
    """P z with its gradient P^T, (d,) -> (D,)."""
    out: Tensor = _MatVec.apply(z, op)
    return out


def rmatvec(g: Tensor, op: Products) -> Tensor:
    """P^T g with its gradient P, (D,) -> (d,)."""
    out: Tensor = _RMatVec.apply(g, op)
    return out


class _MatVec(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, op: Products) -> Tensor:
        ctx.op = op
        return op.matvec(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return rmatvec(g, ctx.op), None


class _RMatVec(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, op: Products) -> Tensor:
        ctx.op = op
        return op.rmatvec(g)

    @staticmethod
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor, None]:
        return matvec(z, ctx.op), None

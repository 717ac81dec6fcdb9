"""Differentiable products with an operator, of any order: the gradient of each is the other."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Products(Protocol):
    """The two products of an operator, P z and P^T g."""

    def matvec(self, z: Tensor) -> Tensor:
        """(d,) -> (D,)."""

    def rmatvec(self, g: Tensor) -> Tensor:
        """(D,) -> (d,)."""


def matvec(z: Tensor, op: Products) -> Tensor:
    """Compute P z, (d,) -> (D,), with the gradient P^T."""
    out: Tensor = _MatVec.apply(z, op)
    return out


def rmatvec(g: Tensor, op: Products) -> Tensor:
    """Compute P^T g, (D,) -> (d,), with the gradient P."""
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

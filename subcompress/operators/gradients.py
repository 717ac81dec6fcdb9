"""An operator's products with their gradients, of any order: each is the other's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subcompress.operators.base import Operator


def matvec(z: Tensor, op: Operator) -> Tensor:
    """P z with its gradient P^T, (d,) -> (D,)."""
    out: Tensor = _MatVec.apply(z, op)
    return out


def rmatvec(g: Tensor, op: Operator) -> Tensor:
    """P^T g with its gradient P, (D,) -> (d,)."""
    out: Tensor = _RMatVec.apply(g, op)
    return out


class _MatVec(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, op: Operator) -> Tensor:
        ctx.op = op
        return op.matvec(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return rmatvec(g, ctx.op), None


class _RMatVec(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, op: Operator) -> Tensor:
        ctx.op = op
        return op.rmatvec(g)

    @staticmethod
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor, None]:
        return matvec(z, ctx.op), None

"""base + left right as a function that torch differentiates in both factors, with the bits that a file rebuilds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subcompress.operators.factors import add_product_of_tensors


def factored(base: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """base + left right, (rows, columns), in a dtype. left: (rows, rank) float32; right: (rank, columns) float32."""
    if torch.compiler.is_compiling():
        return _traced(base, left, right, dtype)
    found: Tensor = _Factored.apply(base, left, right, dtype)
    return found


def between(base: Tensor, middle: Tensor, directions: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """base + U R V, (rows, columns), in a dtype. middle: R, (rank, rank) float32; directions: U and V, see `Start`."""
    left, held = directions
    return factored(base, left, factored(torch.zeros_like(held), middle, held, held.dtype), dtype)


class _Factored(torch.autograd.Function):
    @staticmethod
    def forward(base: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
        return _sum(base, left, right, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, left, right, ctx.dtype = inputs
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, None]:
        return None, *_gradients(grads[0], *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, _: Any, left: Tensor, right: Tensor, __: Any) -> Tensor:
        with torch.autocast(left.device.type, enabled=False):
            return (left @ ctx.saved_tensors[1] + ctx.saved_tensors[0] @ right).to(ctx.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        each = [
            _Factored.apply(*(x if at is None else x.select(at, i) for x, at in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return torch.stack(each), 0


def _sum(base: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(base.shape, dtype=dtype, device=left.device)
    add_product_of_tensors(out.view(-1), base.reshape(-1), left.detach(), right.detach(), 0)
    return out


def _gradients(g: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of left and right from that of their product."""
    with torch.autocast(g.device.type, enabled=False):
        whole = (g if g.layout == torch.strided else g.to_dense()).to(left.dtype)
        return whole @ right.t(), left.t() @ whole


@torch.library.custom_op("subcompress::factored", mutates_args=())
def _traced(base: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """`factored` as one node of a graph."""
    return _sum(base, left, right, dtype)


@_traced.register_fake
def _(base: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return left.new_empty(base.shape, dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])


def _backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, Tensor, None]:
    return None, *_gradients(g, *ctx.saved_tensors), None


_traced.register_autograd(_backward, setup_context=_keep)


__all__ = ["between", "factored"]

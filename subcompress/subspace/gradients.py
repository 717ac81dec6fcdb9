"""z -> the weights of a part, as functions that torch differentiates: forwards, backwards, twice, and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from subcompress.subspace import traced
from subcompress.subspace.plan import Part


class Weights(torch.autograd.Function):
    """z -> every tensor of a part, rounded where that has begun, scaled and cut in one pass over the weights, forwards
    and backwards: with small networks such passes cost nearly as much as the transform. Gradients pass straight through
    the rounding."""

    @staticmethod
    def forward(z: Tensor, node: traced.Node, bits: int, dead: float, step: float) -> tuple[Tensor, ...]:
        # .data: each with a version of its own, so that a module may change one in place under no_grad.
        return tuple(w.data for w in cut(node.part, node.write(z, bits, dead, step)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.node = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _adjoint(ctx.node, grads), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, z: Tensor, *_: None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _Linear.apply(z, ctx.node)
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _each(Weights, info, in_dims, args)


class _Linear(torch.autograd.Function):
    """z -> what every tensor of a part changes by, to first order."""

    @staticmethod
    def forward(z: Tensor, node: traced.Node) -> tuple[Tensor, ...]:
        return shaped(node.part, node.linear(z))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.node = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _adjoint(ctx.node, grads), None

    @staticmethod
    def jvp(ctx: Any, z: Tensor, _: None) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = _Linear.apply(z, ctx.node)
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _each(_Linear, info, in_dims, args)


class _Adjoint(torch.autograd.Function):
    """Gradients of every tensor of a part -> that of z."""

    @staticmethod
    def forward(node: traced.Node, *grads: Tensor) -> Tensor:
        return node.adjoint([g.reshape(-1) for g in grads])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.node = inputs[0]

    @staticmethod
    def backward(ctx: Any, z: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_Linear.apply(z, ctx.node))

    @staticmethod
    def jvp(ctx: Any, _: None, *grads: Tensor) -> Tensor:
        found: Tensor = _Adjoint.apply(ctx.node, *grads)
        return found

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        found, _ = _each(_Adjoint, info, in_dims, args)
        return found[0], 0


def _adjoint(node: traced.Node, grads: Sequence[Tensor]) -> Tensor:
    """The gradient in z; with one of its own where it will be differentiated, or is one of many."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        found: Tensor = _Adjoint.apply(node, *grads)
        return found
    return node.adjoint([(g if g.layout == torch.strided else g.to_dense()).reshape(-1) for g in grads])


def _each(
    function: type[torch.autograd.Function], info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The function of one after the other of a batch: the products take one vector at a time."""
    outputs = []
    for i in range(info.batch_size):
        one = function.apply(*(x if at is None else x.select(at, i) for x, at in zip(args, in_dims, strict=True)))
        outputs.append((one,) if isinstance(one, Tensor) else one)
    stacked = tuple(torch.stack(tensors) for tensors in zip(*outputs, strict=True))
    return stacked, (0,) * len(stacked)


def cut(part: Part, flat: Tensor) -> tuple[Tensor, ...]:
    """Each tensor of a part, complex ones as pairs."""
    return shaped(part, flat.split(part.sizes))


def shaped(part: Part, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(w.view(s.shape) if s.reals == s.size else w for w, s in zip(rows, part.specs, strict=True))

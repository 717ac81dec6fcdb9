"""The weights of a part as one node of a graph: torch.compile does not look into kernels.

Outside of it `subspace._Weights` does the same with less ado.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from subcompress.errors import SubcompressError
from subcompress.kernels import Segment
from subcompress.plan import Part


class Node:
    """A part with its starts on the device, under a number that a graph in this process knows it by while it lives."""

    def __init__(self, part: Part, starts: tuple[float | Tensor, ...]) -> None:
        self.part, self.starts = part, starts
        number = secrets.randbits(63)  # a graph that is taken elsewhere finds nothing, never another part
        self.key = torch.tensor(number, dtype=torch.int64, device="cpu")  # a number would be compiled in, for each copy
        _NODES[number] = self

    def __reduce__(self) -> tuple[type[Node], tuple[Part, tuple[float | Tensor, ...]]]:
        return Node, (self.part, self.starts)  # a copy has a number of its own

    def write(self, rounded: Tensor) -> Tensor:
        """All weights of the part, (D,), of these coordinates."""
        flat = rounded.new_empty(self.part.operator.D)
        places = zip(self.part.firsts, flat.split(self.part.sizes), self.part.scales, self.starts, strict=True)
        self.part.operator.write(rounded, [Segment(*place) for place in places])
        return flat

    def adjoint(self, grads: Iterable[Tensor]) -> Tensor:
        """The gradient in z, (d,), from those of its tensors, each flat."""
        return self.part.operator.adjoint(list(zip(self.part.firsts, grads, self.part.scales, strict=True)))


_NODES: WeakValueDictionary[int, Node] = WeakValueDictionary()


def _node(key: Tensor) -> Node:
    if (found := _NODES.get(int(key))) is None:
        raise SubcompressError(
            "a graph of a Subspace runs in the process that made it, while that Subspace lives: "
            "pack it, and export the network from the file"
        )
    return found


@torch.library.custom_op("subcompress::weights", mutates_args=())
def weights(z: Tensor, rounded: Tensor, key: Tensor, D: int) -> Tensor:
    """`Node.write` of the rounded coordinates, (D,), with gradients in z."""
    return _node(key).write(rounded)


@weights.register_fake
def _(z: Tensor, rounded: Tensor, key: Tensor, D: int) -> Tensor:
    return rounded.new_empty(D)


@torch.library.custom_op("subcompress::adjoint", mutates_args=())
def adjoint(g: Tensor, key: Tensor, d: int) -> Tensor:
    """The gradient in z, (d,), from that of all weights, (D,)."""
    node = _node(key)
    return node.adjoint(g.split(node.part.sizes))


@adjoint.register_fake
def _(g: Tensor, key: Tensor, d: int) -> Tensor:
    return g.new_empty(d)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.key, ctx.d = inputs[2], inputs[0].shape[0]


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
    return adjoint(g.contiguous(), ctx.key, ctx.d), None, None, None


weights.register_autograd(_backward, setup_context=_keep)

"""The weights of a part as one node of a graph: torch.compile does not look into kernels.

Outside of it `subspace._Weights` does the same with less ado.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from subcompress.kernels import Segment
from subcompress.plan import Part


class Node:
    """A part with its starts on the device, under a number that graphs know it by while it lives."""

    def __init__(self, part: Part, starts: tuple[float | Tensor, ...]) -> None:
        self.part, self.starts = part, starts
        self.key = next(_KEYS)
        _NODES[self.key] = self

    def __reduce__(self) -> tuple[type[Node], tuple[Part, tuple[float | Tensor, ...]]]:
        return Node, (self.part, self.starts)  # a copy has a number of its own

    def write(self, rounded: Tensor) -> Tensor:
        """All weights of the part, (D,), of these coordinates."""
        flat = rounded.new_empty(self.part.operator.D)
        places = zip(self.part.firsts, flat.split(self.part.sizes), self.part.scales, self.starts, strict=True)
        self.part.operator.write(rounded, [Segment(*place) for place in places])
        return flat


_KEYS = itertools.count()
_NODES: WeakValueDictionary[int, Node] = WeakValueDictionary()


@torch.library.custom_op("subcompress::weights", mutates_args=())
def weights(z: Tensor, rounded: Tensor, key: int) -> Tensor:
    """`Node.write` of the rounded coordinates, with gradients in z."""
    return _NODES[key].write(rounded)


@weights.register_fake
def _(z: Tensor, rounded: Tensor, key: int) -> Tensor:
    return rounded.new_empty(_NODES[key].part.operator.D)


@torch.library.custom_op("subcompress::adjoint", mutates_args=())
def adjoint(g: Tensor, key: int) -> Tensor:
    """The gradient in z, (d,), from that of all weights, (D,)."""
    part = _NODES[key].part
    return part.operator.adjoint(list(zip(part.firsts, g.split(part.sizes), part.scales, strict=True)))


@adjoint.register_fake
def _(g: Tensor, key: int) -> Tensor:
    return g.new_empty(_NODES[key].part.operator.d)


def _keep_key(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.key = inputs[2]


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    return adjoint(g.contiguous(), ctx.key), None, None


weights.register_autograd(_backward, setup_context=_keep_key)

"""The weights of a part as one node of a graph: torch.compile does not look into kernels.

Outside of it `subspace.gradients.Weights` does the same with less ado.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from subcompress.errors import SubcompressError
from subcompress.format.record import bfloat16
from subcompress.operators import HadamardBlocks, Operator
from subcompress.operators.kernels import Segment
from subcompress.subspace.plan import Part
from subcompress.tensors.rounding import TINY


class Node:
    """A part with its starts on the device, under a number that a graph in this process knows it by while it lives."""

    def __init__(self, part: Part, starts: tuple[float | Tensor, ...]) -> None:
        self.part = part
        self.starts = tuple(_normal(s) if isinstance(s, Tensor) else s for s in starts)
        self.sizes, self.firsts = part.sizes, part.firsts
        self._packed: tuple[float, Operator, tuple[float, ...]] = (0.0, part.operator, part.scales)
        number = secrets.randbits(63)  # a graph that is taken elsewhere finds nothing, never another part
        self.key = torch.tensor(number, dtype=torch.int64, device="cpu")  # a number would be compiled in, for each copy
        _NODES[number] = self

    def __reduce__(self) -> tuple[type[Node], tuple[Part, tuple[float | Tensor, ...]]]:
        return Node, (self.part, self.starts)  # a copy has a number of its own

    def write(self, z: Tensor, bits: int, dead: float, step: float) -> Tensor:
        """All weights of the part, (D,), of these coordinates; with bits, of their integers as a file holds them."""
        operator, scales = self.part.operator, self.part.scales
        if bits:
            z = integers(z, bits, dead, step)
            if operator.exact:
                operator, scales = self._as_packed(step)
            else:
                z = z.mul_(step)
        flat = z.new_empty(operator.D)
        places = zip(self.firsts, flat.split(self.sizes), scales, self._starts_on(z.device), strict=True)
        operator.write(z, [Segment(*place) for place in places])
        return flat

    def _as_packed(self, step: float) -> tuple[Operator, tuple[float, ...]]:
        """The operator and the scales of a file whose integers are steps of this size."""
        if self._packed[0] != step:
            operator = self.part.operator
            if isinstance(operator, HadamardBlocks) and operator.K:
                operator = operator.with_constant(round(1 / step))
            self._packed = (step, operator, tuple(bfloat16(scale * step) for scale in self.part.scales))
        return self._packed[1:]

    def _starts_on(self, device: torch.device) -> tuple[float | Tensor, ...]:
        if any(isinstance(s, Tensor) and s.device != device for s in self.starts):
            self.starts = tuple(s.to(device) if isinstance(s, Tensor) else s for s in self.starts)
        return self.starts

    def linear(self, z: Tensor) -> tuple[Tensor, ...]:
        """scale * P z for each tensor, flat: what the weights change by, to first order."""
        rows = self.part.operator.matvec(z).split(self.sizes)
        return tuple(w * scale for w, scale in zip(rows, self.part.scales, strict=True))

    def adjoint(self, grads: Iterable[Tensor]) -> Tensor:
        """The gradient in z, (d,), from those of its tensors, each flat."""
        return self.part.operator.adjoint(list(zip(self.firsts, grads, self.part.scales, strict=True)))


def integers(z: Tensor, bits: int, dead: float, step: float) -> Tensor:
    """z in units of step, rounded to integers of the given bits, those up to `dead` to zero; a tensor of its own."""
    q, top = z / step, (1 << (bits - 1)) - 1
    whole = q.round().clamp_(-top, top)
    return whole if dead <= 0.5 else torch.where(q.abs() <= dead, 0.0, whole)


def _normal(start: Tensor) -> Tensor:
    """As the format adds it: what is subnormal in float32 is zero."""
    small = (start != 0) & (start.abs() < TINY)
    return torch.where(small, 0.0, start) if bool(small.any()) else start


_NODES: WeakValueDictionary[int, Node] = WeakValueDictionary()


def _node(key: Tensor) -> Node:
    if (found := _NODES.get(int(key))) is None:
        raise SubcompressError(
            "this graph belongs to a Subspace of another process, or to one that no longer exists: pack the "
            "Subspace, and export the network from the file"
        )
    return found


@torch.library.custom_op("subcompress::weights", mutates_args=())
def weights(z: Tensor, state: Tensor, key: Tensor, at: int, D: int) -> Tensor:
    """`Node.write` of part number `at`, (D,), with gradients in z. state: bits, dead and the step of each part, a
    tensor, so that a graph is not made again when rounding begins."""
    bits, dead, *steps = state.tolist()
    return _node(key).write(z, int(bits), dead, steps[at])


@weights.register_fake
def _(z: Tensor, state: Tensor, key: Tensor, at: int, D: int) -> Tensor:
    return z.new_empty(D)


@torch.library.custom_op("subcompress::adjoint", mutates_args=())
def adjoint(g: Tensor, key: Tensor, d: int) -> Tensor:
    """The gradient in z, (d,), from that of all weights, (D,)."""
    node = _node(key)
    return node.adjoint(g.split(node.sizes))


@adjoint.register_fake
def _(g: Tensor, key: Tensor, d: int) -> Tensor:
    return g.new_empty(d)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor) -> None:
    ctx.key, ctx.d = inputs[2], inputs[0].shape[0]


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
    return adjoint(g.contiguous(), ctx.key, ctx.d), None, None, None, None


weights.register_autograd(_backward, setup_context=_keep)

"""Direct training of a copy of the network for a few steps, with one learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.data import parts
from subcompress.operators.forms import SEEDED_SLOTS, Seeded
from subcompress.subspace.copying import copied
from subcompress.subspace.low_rank import between, factored
from subcompress.subspace.masters import Masters
from subcompress.subspace.starts import Start, Starts
from subcompress.support.stepping import Adam

FIRST = 8
"""Number of batches whose loss is compared before and after."""

Examples = Callable[[int], Iterator[Any]]
"""Returns the given number of training batches, in a fixed order. For a negative number, each example once."""

LossOf = Callable[[nn.Module, Any], Tensor]
"""Returns the loss of a module on a batch."""


class _Factors:
    """The low-rank factors of a matrix in a trial, and the places in the module that use the matrix."""

    def __init__(self, module: nn.Module, name: str, start: Start, drawn: torch.Generator) -> None:
        parameter = module.get_parameter(name)
        self.base, self.places = parameter.detach(), list[tuple[nn.Module, str]]()
        for owner in module.modules():
            for leaf in [n for n, p in owner._parameters.items() if p is parameter]:
                del owner._parameters[leaf]
                self.places.append((owner, leaf))
        self.directions: tuple[Tensor, Tensor] | None = None
        shapes = [(start.rank, -1), (-1, start.rank)]
        if start.directions is not None:
            u, v = start.directions
            self.directions, shapes = (u.to(self.base.device), v.to(self.base.device)), [(start.rank, start.rank)]
        self.sides: list[Tensor] = []
        for piece, shape in zip(start.pieces, shapes, strict=True):
            deviation = piece.form.scale * math.sqrt(SEEDED_SLOTS) if isinstance(piece.form, Seeded) else 0.0
            values = deviation * torch.randn(piece.reals, generator=drawn)
            self.sides.append(values.view(shape).to(self.base.device).requires_grad_())

    def put(self) -> None:
        """Give the module the matrix that the factors currently make."""
        if self.directions is not None:
            weight = between(self.base, self.sides[0], self.directions, self.base.dtype)
        else:
            right, left = self.sides
            weight = factored(self.base, left, right, self.base.dtype)
        for owner, leaf in self.places:
            owner._buffers[leaf] = weight


class DirectTrial:
    """A copy of the module, trained with one learning rate.

    acting: the starts of the parameters that coordinates act on. still: parameters that the copy shares with the
    module. before, after: the values of the trained tensors by name. The name of a factor is that of its matrix, a zero
    character and its number.
    """

    def __init__(
        self, module: nn.Module, rate: float, acting: Mapping[str, Start], seed: int = 0, still: Collection[str] = ()
    ) -> None:
        changing = {n for n, start in acting.items() if not start.rank}
        self.module, self.rate = copied(module, shared={*still, *acting} - changing), rate
        drawn = torch.Generator().manual_seed(seed & ((1 << 63) - 1))
        self.factors = {n: _Factors(self.module, n, s, drawn) for n, s in acting.items() if s.rank}
        named = dict(module.named_parameters(remove_duplicate=False))
        meant = {id(named[n]) for n in acting if n not in self.factors}
        self.before: dict[str, Tensor] = {n: p for n, p in named.items() if id(p) in meant}
        self.after: dict[str, Tensor] = {
            n: p for n, p in self.module.named_parameters(remove_duplicate=False) if n in self.before
        }
        for name, factors in self.factors.items():
            for k, side in enumerate(factors.sides):
                self.after[f"{name}\0{k}"], self.before[f"{name}\0{k}"] = side, side.detach().clone()
        trained = {id(p) for p in self.after.values()}
        for p in self.module.parameters():
            p.requires_grad_(id(p) in trained)
        self.masters = Masters({id(p): p for p in self.after.values()}.values())
        self._before: list[float] = []
        self.last = math.inf
        self.steps = 0
        self.read: set[str] = set()

    def run(self, batches: Iterator[Any], loss_of: LossOf) -> None:
        """Train on the batches. End early if the loss is not finite."""
        self.module.train()
        first: list[Any] = []
        optimizer = Adam(self.masters.wide, lr=self.rate)
        for batch in batches:
            value, depends = self.backward(batch, loss_of)
            if len(first) < FIRST:
                first.append(batch)
                self._before.append(value)
            if not math.isfinite(value):
                return
            if not depends:  # such as the loss of an expert that is not trained
                continue
            self.masters.step(optimizer)
            self.steps += 1
        # On the same batches as before: other batches differ by more than a few steps of training change.
        self.last = float(np.mean([parts.value(batch, partial(self.loss, loss_of)) for batch in first]))
        self._forget_gradients()

    def loss(self, loss_of: LossOf, batch: Any) -> Tensor:
        """The loss of a batch, or of a part of one, with the current values."""
        for factors in self.factors.values():
            factors.put()
        return loss_of(self.module, batch)

    def _forget_gradients(self) -> None:
        for p in self.after.values():
            p.grad = None

    def backward(self, batch: Any, loss_of: LossOf) -> tuple[float, bool]:
        """Compute the gradients of a batch and note which parameters have one.

        Returns the loss, and whether it depends on any parameter. The gradients are left in the parameters, as dense
        tensors.
        """
        self._forget_gradients()
        loss, depends = parts.backward(batch, partial(self.loss, loss_of))
        for name, p in self.after.items():
            if p.grad is not None:
                self.read.add(_owner(name))
                p.grad = p.grad.to_dense() if p.grad.layout != torch.strided else p.grad
        return float(loss), depends

    @property
    def first(self) -> float:
        """The mean loss of the first batches, each before the step on it."""
        return float(np.mean(self._before))

    @property
    def falls(self) -> bool:
        """Whether the loss is lower at the end than in the first steps."""
        return math.isfinite(self.last) and self.last < self.first and bool(self.read)

    def unread(self) -> tuple[str, ...]:
        """The parameters that no forward pass has read, by their first names. Empty if no loss had a gradient."""
        if not self.read:
            return ()
        seen: dict[int, str] = {}
        for name, p in self.after.items():
            seen.setdefault(id(p), _owner(name))
        read = {id(p) for n, p in self.after.items() if _owner(n) in self.read}
        return tuple(dict.fromkeys(name for key, name in seen.items() if key not in read))

    def reals(self, name: str) -> int:
        """Number of real numbers in a parameter."""
        p = self.factors[name].base if name in self.factors else self.after[name]
        return p.numel() * (2 if p.is_complex() else 1)

    def change(self, name: str) -> np.ndarray:
        """How far each real number of a parameter moved, (n,) float64."""
        before = self.before[name].detach()
        after = self.masters.of(self.after[name]).detach()
        return flat(after - before.to(after.dtype)).double().numpy()

    def changes(self, name: str) -> list[np.ndarray]:
        """The `change` of a parameter, or of each factor of a matrix."""
        sides = range(len(self.factors[name].sides)) if name in self.factors else ()
        return [self.change(f"{name}\0{k}") for k in sides] or [self.change(name)]

    def sizes(self, name: str, starts: Starts, still: Mapping[str, np.ndarray]) -> tuple[float, ...]:
        """The root mean square change of each piece that coordinates act on."""
        start, changes = starts.of(still)[name], self.changes(name)
        if not start.runs:
            return tuple(map(rms, changes))
        (change,) = changes
        items = starts.items(name, still)
        return tuple(rms(change[items == i]) for i, piece in enumerate(start.pieces) if not piece.fixed)

    @contextmanager
    def disturbed(self, noise: Mapping[str, float]) -> Iterator[None]:
        """Add random noise to every parameter while the block lasts. noise: its size by parameter."""
        parameters = {id(p): (p, noise[n]) for n, p in self.after.items()}.values()
        held = [p.detach().clone() for p, _ in parameters]
        with torch.no_grad():
            for p, size in parameters:
                p.add_(size * torch.randn_like(p))
        try:
            yield
        finally:
            with torch.no_grad():
                for (p, _), value in zip(parameters, held, strict=True):
                    p.copy_(value)


def _owner(name: str) -> str:
    """The name of a factor's matrix, or the name itself if it is no factor."""
    return name.partition("\0")[0]


def flat(x: Tensor) -> Tensor:
    """The real numbers of a tensor as one row on the host."""
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1).cpu()


def rms(x: np.ndarray) -> float:
    return math.sqrt(float(np.square(x).mean())) if len(x) else 0.0


__all__ = ["DirectTrial", "Examples", "LossOf", "flat", "rms"]

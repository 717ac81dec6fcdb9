"""Parameters of 16 bits that are trained directly: the steps are summed up in float32.

A step of 1e-3 is less than half of what two neighbors of bfloat16 around 1 differ by, 2^-7, and would be lost each
time. The parameters themselves are their masters, rounded.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Masters:
    """What an optimizer steps on in place of some parameters: `wide`, of each one of fewer than 32 bits a copy in
    float32, of any other the parameter itself."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._narrow: list[tuple[Tensor, nn.Parameter]] = []
        self.wide: list[Tensor] = []
        for p in parameters:
            if p.is_floating_point() and p.itemsize < 4:
                self._narrow.append((p, nn.Parameter(p.detach().float())))
                self.wide.append(self._narrow[-1][1])
            else:
                self.wide.append(p)
        self._of = {id(p): master for p, master in self._narrow}

    def of(self, p: Tensor) -> Tensor:
        """The master of a parameter."""
        return self._of.get(id(p), p)

    def take(self) -> None:
        """Move the gradients of narrow parameters to their masters, added to what these have."""
        for p, master in self._narrow:
            if p.grad is not None:
                grad = p.grad.to_dense() if p.grad.layout != torch.strided else p.grad
                master.grad = grad.float() if master.grad is None else master.grad + grad
                p.grad = None

    def give(self) -> None:
        """Round the masters to the parameters."""
        with torch.no_grad():
            for p, master in self._narrow:
                p.copy_(master)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimizer, on the gradients that the parameters have."""
        for _, master in self._narrow:
            master.grad = None
        self.take()
        optimizer.step()
        self.give()


__all__ = ["Masters"]

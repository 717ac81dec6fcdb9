"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174), as in any code base of transformers.

Here because the forward pass runs once more while gradients are computed, and must find the same weights.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from families.data import digits
from families.family import Family, accuracy


class Checkpointed(nn.Module):
    """(N, 64) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(lambda t: self.a(t).tanh(), x, use_reentrant=False))


make_net, load = Checkpointed, digits

FAMILY = Family("checkpointed", make_net, load, d=200, epochs=20, metric=accuracy)

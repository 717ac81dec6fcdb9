"""Orthogonal starts (Saxe et al. 2014, arXiv:1312.6120), as in most policy networks (Schulman et al. 2017).

Here because no seed of independent numbers gives an orthogonal matrix: it is a start of its own, and must be trained.
"""

from __future__ import annotations

from torch import nn

from families.data import digits
from families.family import Family, accuracy


def layer(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """A layer with an orthogonal matrix times `gain` and a bias of zeros."""
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


def make_net() -> nn.Module:
    """(N, 64) -> (N, 10), D = 8,970."""
    return nn.Sequential(layer(64, 64, 1.4), nn.Tanh(), layer(64, 64, 1.4), nn.Tanh(), layer(64, 10, 0.01))


load = digits

FAMILY = Family("orthogonal", make_net, load, d=400, epochs=20, metric=accuracy, goal=0.90)

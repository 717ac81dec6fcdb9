"""Residual blocks with LayerScale (Touvron et al. 2021, arXiv:2103.17239), as in ConvNeXt, CaiT and DINOv2.

Here because gamma starts at 1e-6 and training moves it to about 0.1: a move in proportion to the start is none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from families.data import digits
from families.family import Family, accuracy


class Block(nn.Module):
    """x + gamma * MLP(LayerNorm(x)), (N, width)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a, self.b = nn.Linear(width, 64), nn.Linear(64, width)
        self.gamma = nn.Parameter(start * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.b(functional.gelu(self.a(self.norm(x))))


def make_net() -> nn.Module:
    """(N, 64) -> (N, 10), D = 11,050."""
    return nn.Sequential(nn.Linear(64, 32), Block(32, 1e-6), Block(32, 1e-6), nn.LayerNorm(32), nn.Linear(32, 10))


load = digits

FAMILY = Family("layer_scale", make_net, load, d=400, epochs=20, metric=accuracy, goal=0.93)

"""Regression judged by Pearson's correlation, as in the prediction of affinities and of quality scores.

Here because the correlation over a split is not the mean of those over its batches: `fit` must report what one call on
all outputs gives. The validation split is larger than any batch, and sorted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from families.data import cut
from families.family import Family, Splits


def make_net() -> nn.Module:
    """(N, 16) -> (N, 1), D = 577."""
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))


def load() -> Splits:
    """y = sin(u x) + noise; rows of the validation split in the order of y."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(4600, 16, generator=drawn)
    u = torch.randn(16, 1, generator=drawn) / 4
    y = (x @ u).sin() + 0.3 * torch.randn(4600, 1, generator=drawn)
    order = torch.arange(4600)
    order[2000:4200] = 2000 + y[2000:4200, 0].argsort()
    return cut(x[order], y[order], 2000, 2200)


def correlation(outputs: Tensor, y: Tensor) -> Tensor:
    """The correlation of one column with the other."""
    return torch.corrcoef(torch.cat([outputs, y], 1).T)[0, 1]


FAMILY = Family("correlation", make_net, load, d=100, epochs=10, loss="mse", metric=correlation)

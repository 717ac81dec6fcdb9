"""Linear regression with one output.

Here because its bias is a single random number: it must meet an offset of 3, many times what it starts at.
"""

from __future__ import annotations

import torch
from torch import nn

from families.data import cut
from families.family import Family, Splits, mse


def make_net() -> nn.Module:
    """(N, 8) -> (N, 1), D = 9."""
    return nn.Linear(8, 1)


def load() -> Splits:
    """y = 3 + x_0; the best constant answer has an error of 1."""
    x = torch.randn(1024, 8, generator=torch.Generator().manual_seed(0))
    return cut(x, 3 + x[:, :1], 768, 128)


FAMILY = Family(
    "scalar_head",
    make_net,
    load,
    d=None,
    epochs=20,
    loss="mse",
    metric=mse,
    minimize=True,
    goal=0.02,
    steps=(1e-2, 3e-2, 0.1),
)

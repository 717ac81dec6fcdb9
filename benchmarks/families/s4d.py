"""A diagonal state-space network, S4D-Lin (Gu et al. 2022, arXiv:2206.11893), on
oscillations in noise.

Here because its poles are complex and start at -1/2 + i pi n, a chosen ramp in one part and a constant in the other,
and its log steps at uniform random numbers around -4: what a seed's normal numbers replace badly.
"""

from __future__ import annotations

import torch
from torch import nn

from families.data import cut
from families.examples import example
from families.family import Family, Splits, accuracy


def load() -> Splits:
    """Oscillations of 64 steps, (N, 64, 1), of any phase, in noise: which of ten frequencies?"""
    drawn, n = torch.Generator().manual_seed(0), 1800
    y = torch.randint(10, (n,), generator=drawn)
    frequency = 0.02 * 1.35**y * (1 + 0.05 * torch.randn(n, generator=drawn))  # cycles a step, up to 0.3
    phase = torch.rand(n, generator=drawn)
    angle = 2 * torch.pi * (frequency.unsqueeze(1) * torch.arange(64) + phase.unsqueeze(1))
    x = angle.sin() + 0.5 * torch.randn(n, 64, generator=drawn)
    return cut(x.unsqueeze(-1), y, 1200, 300)


def make_net() -> nn.Module:
    """One number a step."""
    return example("s4d").Sequence(inputs=1)


FAMILY = Family("s4d", make_net, load, d=400, epochs=20, metric=accuracy)

"""BatchNorm without running statistics (Ioffe, Szegedy 2015, arXiv:1502.03167), as in image-to-image networks.

Here because a batch of one example has no statistics: a network must be tried with several.
"""

from __future__ import annotations

from torch import nn

from families.data import digits
from families.family import Family, accuracy


def make_net() -> nn.Module:
    """(N, 64) -> (N, 10), D = 2,474."""
    norm = nn.BatchNorm1d(32, track_running_stats=False)
    return nn.Sequential(nn.Linear(64, 32), norm, nn.ReLU(), nn.Linear(32, 10))


load = digits

FAMILY = Family("batch_statistics", make_net, load, d=250, epochs=20, metric=accuracy)

"""Linear layers with weight normalization (Salimans, Kingma 2016, arXiv:1602.07868): w = g v / |v|.

Here because g starts at the lengths of v's rows, numbers that no initializer gives, and both are parameters of a
parametrization rather than of the layer.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from families.data import digits
from families.family import Family, accuracy


def make_net() -> nn.Module:
    """(N, 64) -> (N, 10), D = 9,108."""
    layers = [weight_norm(nn.Linear(i, o)) for i, o in ((64, 64), (64, 64), (64, 10))]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


load = digits

FAMILY = Family("weight_norm", make_net, load, d=600, epochs=20, metric=accuracy)

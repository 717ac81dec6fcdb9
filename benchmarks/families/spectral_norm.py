"""Linear layers with spectral normalization (Miyato et al. 2018, arXiv:1802.05957), as in critics of GANs.

Here because each layer's largest singular value is found by power iteration, whose vectors are buffers that change in
training, and because the scale of the weights does not matter at all.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from families.data import digits
from families.family import Family, accuracy


def make_net() -> nn.Module:
    """(N, 64) -> (N, 10), D = 8,970."""
    layers = [spectral_norm(nn.Linear(i, o)) for i, o in ((64, 64), (64, 64))]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(64, 10))


load = digits

FAMILY = Family("spectral_norm", make_net, load, d=600, epochs=20, metric=accuracy)

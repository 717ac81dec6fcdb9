"""What networks are observed to start from."""

from __future__ import annotations

import torch
from torch import nn

from subcompress.subspace.observing import built
from subcompress.subspace.starts import recognize


def holding(make):
    """A factory of a module with one parameter, made anew by each build."""

    def build():
        module = nn.Module()
        module.p = nn.Parameter(make())
        return module

    return build


def observed(make, **options):
    module, build = built(holding(make), 0)
    return recognize(module, build=build, **options)


def start_of(make, **options):
    return observed(make, **options).of()["p"]


def instance(tensor, **options):
    module = nn.Module()
    module.p = nn.Parameter(tensor)
    return recognize(module, **options).of()["p"]


def _sinusoids(n: int, width: int) -> torch.Tensor:
    angle = torch.arange(n)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angle.sin(), angle.cos()], 1)

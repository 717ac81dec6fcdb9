"""A network, its data, and subspaces of it."""

from __future__ import annotations

import torch
from torch import nn

import subcompress
from subcompress import Subspace
from subcompress.training.loop import TrainOptions
from subcompress.training.preflight import check_trains
from subcompress.training.tasks import Task

X = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))


def spread(module: nn.Module, d: int = 20, bits: int = 0, **options) -> Subspace:
    """A Subspace of the module, off its start."""
    sub = Subspace.of(module, d, **options)
    with torch.no_grad():
        sub.z.copy_(0.3 * torch.randn(d, generator=torch.Generator().manual_seed(2)))
    if bits:
        sub.round(bits)
    return sub


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def data(n: int = 96) -> subcompress.Data:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(3))
    return subcompress.Data(*[subcompress.Split(x, (x[:, :3].argmax(1)))] * 3)


def checked(module: nn.Module, loss="cross-entropy") -> None:
    """What `fit` looks at before it trains."""
    check_trains(spread(module), module, data(), Task.of(loss), TrainOptions(1, 0.01, 32))


def packed(sub: Subspace, tmp_path, module: nn.Module) -> nn.Module:
    """The module from the file of a Subspace."""
    subcompress.pack(sub, tmp_path / "net.safetensors")
    return subcompress.load(tmp_path / "net.safetensors", module)


class Stopped(subcompress.Listener):
    def __init__(self, after: int) -> None:
        self.left = after

    def epoch(self, progress):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

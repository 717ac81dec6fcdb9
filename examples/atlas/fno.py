"""A Fourier neural operator that solves Poisson's equation on a circle.

Li, Kovachki, Azizzadenesheli, Liu, Bhattacharya, Stuart, Anandkumar 2021, "Fourier Neural Operator for Parametric
Partial Differential Equations", https://arxiv.org/abs/2010.08895.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

SIZE = 64
"""Points on the circle."""


class SpectralConv(nn.Module):
    """Multiplies the lowest `modes` frequencies by a complex matrix each, (N, i, L) -> (N, o, L)."""

    def __init__(self, inputs: int, outputs: int, modes: int) -> None:
        super().__init__()
        start = torch.rand(inputs, outputs, modes, dtype=torch.cfloat) / (inputs * outputs)
        self.weights = nn.Parameter(start)

    def forward(self, x: Tensor) -> Tensor:
        modes = self.weights.shape[-1]
        low = torch.einsum("nik,iok->nok", torch.fft.rfft(x)[..., :modes], self.weights)
        return torch.fft.irfft(functional.pad(low, (0, x.shape[-1] // 2 + 1 - modes)), n=x.shape[-1])


class FNO(nn.Module):
    """f, (N, L, 1) -> u, (N, L, 1)."""

    def __init__(self, modes: int = 12, width: int = 24, layers: int = 3) -> None:
        super().__init__()
        self.fc0 = nn.Linear(2, width)
        self.convs = nn.ModuleList([SpectralConv(width, width, modes) for _ in range(layers)])
        self.ws = nn.ModuleList([nn.Conv1d(width, width, 1) for _ in range(layers)])
        self.fc1 = nn.Linear(width, 64)
        self.fc2 = nn.Linear(64, 1)

    def forward(self, f: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, f.shape[1], device=f.device).view(1, -1, 1).expand_as(f)
        x = self.fc0(torch.cat((f, grid), -1)).mT
        for i, (conv, w) in enumerate(zip(self.convs, self.ws, strict=True)):
            x = conv(x) + w(x)
            x = functional.gelu(x) if i + 1 < len(self.convs) else x
        return self.fc2(functional.gelu(self.fc1(x.mT)))


def make_net() -> nn.Module:
    """A small one, D = 14,305 real numbers."""
    return FNO(modes=8, width=16)


def poisson(n: int, seed: int) -> TensorDataset:
    """f with eight random frequencies, and 40 u, exactly."""
    drawn = torch.Generator().manual_seed(seed)
    k = torch.arange(1.0, 9.0)
    a, b = torch.randn(n, 8, generator=drawn) / k, torch.randn(n, 8, generator=drawn) / k
    angle = 2 * torch.pi * k[:, None] * torch.arange(SIZE) / SIZE
    square = (2 * torch.pi * k) ** 2
    f = a @ angle.sin() + b @ angle.cos()
    u = (a / square) @ angle.sin() + (b / square) @ angle.cos()
    return TensorDataset(f.unsqueeze(-1), 40 * u.unsqueeze(-1))


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """1,000, 200 and 200 equations."""
    return poisson(1000, 0), poisson(200, 1), poisson(200, 2)


def relative_l2(outputs: Tensor, y: Tensor) -> Tensor:
    """The length of the error over that of the answer, mean over the examples."""
    return ((outputs - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)).mean()


def agreement(outputs: Tensor, y: Tensor) -> Tensor:
    """1 minus the relative error: 1 for the answer itself, 0 for an error as long as the answer."""
    return 1 - relative_l2(outputs, y)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The metric, of a batch."""
    return relative_l2(model(batch[0]), batch[1])


LOSS, METRIC, EPOCHS, LR = loss, agreement, 8, 1e-2
THRESHOLD = 0.98
LITERATURE = """Relative errors of about 0.015, an agreement of 0.985, on Burgers' equation in one dimension, with
about thirty times the weights (Li et al. 2021)."""

"""A physics-informed network for the ground state of a quantum well: the loss differentiates through the network.

Jin, Mattheakis, Protopapas 2022, "Physics-Informed Neural Networks for Quantum Eigenvalue Problems",
https://arxiv.org/abs/2203.00451.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

WIDTH, BARRIER = 1.0, 60.0
"""The well lies between hard walls at 0 and WIDTH; a barrier makes two wells of it, the left one deeper."""


def potential(x: Tensor) -> Tensor:
    """V(x)."""
    return BARRIER * torch.exp(-(((x - 0.55) / 0.06) ** 2)) - 15.0 * torch.exp(-(((x - 0.25) / 0.1) ** 2))


class Wave(nn.Module):
    """Places, (N, 1) -> psi, (N, 1), which is zero at the walls."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers = [nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x * (WIDTH - x) * self.body(4 * x - 2)


@cache
def ground(points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Places, and the ground state there, by finite differences."""
    grid = np.linspace(0, WIDTH, points + 2)[1:-1]
    v = potential(torch.from_numpy(grid)).numpy()
    step = WIDTH / (points + 1)
    hamiltonian = np.diag(v + 1 / step**2) - (np.eye(points, k=1) + np.eye(points, k=-1)) / (2 * step**2)
    state = np.linalg.eigh(hamiltonian)[1][:, 0]
    return grid, state / np.abs(state).max()


def exact(x: Tensor) -> Tensor:
    """The ground state at x, (N, 1)."""
    return torch.from_numpy(np.interp(x.numpy(), *ground())).float()


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Training places at random; validation and test on grids. y, the exact state, is only measured with."""
    drawn = torch.Generator().manual_seed(0)
    train = torch.rand(4096, 1, generator=drawn)
    validation, test = (torch.linspace(0, WIDTH, n).unsqueeze(1) for n in (257, 301))
    a, b, c = (TensorDataset(x, exact(x)) for x in (train, validation, test))
    return a, b, c


def derivative(y: Tensor, x: Tensor) -> Tensor:
    """dy / dx, with a graph of its own."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The energy <psi| -d2/2dx2 + V |psi> / <psi|psi>, and how far psi is from an eigenstate of it, weighted low."""
    x = batch[0].detach().clone().requires_grad_()
    psi = model(x)
    slope = derivative(psi, x)
    mass = psi.square().mean()
    energy = (slope.square() / 2 + potential(x) * psi.square()).mean() / mass
    residual = -derivative(slope, x) / 2 + (potential(x) - energy) * psi
    return energy + 1e-3 * residual.square().mean() / mass


def overlap(outputs: Tensor, y: Tensor) -> Tensor:
    """|<psi|exact>|^2: 1 for the ground state itself."""
    return (outputs * y).sum().square() / (outputs.square().sum() * y.square().sum())


make_net = Wave
LOSS, METRIC, EPOCHS, BATCH_SIZE, LR = loss, overlap, 4, 64, 1e-2
THRESHOLD = 0.99
LITERATURE = """Jin et al. 2022 find states that lie on the exact ones in their figures, with 50 units a layer and
about 100,000 steps: overlaps close to 1."""

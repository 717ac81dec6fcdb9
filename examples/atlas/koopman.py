"""A Koopman autoencoder: a damped pendulum made linear by an encoder, and predicted eight steps ahead.

Lusch, Kutz, Brunton 2018, "Deep learning for universal linear embeddings of nonlinear dynamics",
https://arxiv.org/abs/1712.09707.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

Splits = tuple[TensorDataset, TensorDataset, TensorDataset]


AHEAD = 8
"""Steps that are predicted."""


class Koopman(nn.Module):
    """The state now, (N, 2) -> the states now and at the next steps, (N, 1 + AHEAD, 2)."""

    def __init__(self, latent: int = 32, width: int = 80) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, latent))
        self.K = nn.Parameter(torch.eye(latent))
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        states = [self.encoder(x)]
        for _ in range(AHEAD):
            states.append(states[-1] @ self.K.mT)
        return self.decoder(torch.stack(states, 1))


def pendulum(x: Tensor, steps: int, dt: float = 0.02) -> Tensor:
    """Angle and speed of a damped pendulum, (N, 2) -> (N, 2), after `steps` small steps."""
    angle, speed = x.unbind(-1)
    for _ in range(steps):
        speed = speed + dt * (-3 * angle.sin() - 0.3 * speed)
        angle = angle + dt * speed
    return torch.stack([angle, speed], -1)


def cut(x: Tensor, y: Tensor, train: int, validation: int) -> Splits:
    """The first rows for training, the next ones for validation, what is left for the test."""
    parts = (slice(0, train), slice(train, train + validation), slice(train + validation, None))
    a, b, c = (TensorDataset(x[part], y[part]) for part in parts)
    return a, b, c


def load() -> Splits:
    """2,000, 400 and 400 starts, each with what follows at intervals of 0.2."""
    x = 4 * torch.rand(2800, 2, generator=torch.Generator().manual_seed(0)) - 2
    states = [x]
    for _ in range(AHEAD):
        states.append(pendulum(states[-1], 10))
    return cut(x, torch.stack(states, 1), 2000, 400)


def relative_l2(outputs: Tensor, y: Tensor) -> Tensor:
    """The length of the error over that of the answer, over all examples together."""
    return (outputs - y).norm() / y.norm()


def agreement(outputs: Tensor, y: Tensor) -> Tensor:
    """1 minus the relative error."""
    return 1 - relative_l2(outputs, y)


make_net = Koopman
LOSS, METRIC, EPOCHS, LR = "mse", agreement, 10, 6e-3
THRESHOLD = 0.9
LITERATURE = """Lusch et al. 2018 give mean squared errors after trainings of hours, and no relative error at this
size."""

"""A Koopman autoencoder (Lusch et al. 2018, arXiv:1712.09707): a nonlinear system made linear by an encoder.

Here because the matrix of the linear dynamics starts at the identity: a structure that a random start loses, in a
matrix that is applied eight times in a row, and of which training changes every entry.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from families.data import cut
from families.family import Family, Splits

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
    """Angle and speed of a damped pendulum, (N, 2) -> (N, 2), after so many small steps."""
    angle, speed = x.unbind(-1)
    for _ in range(steps):
        speed = speed + dt * (-3 * angle.sin() - 0.3 * speed)
        angle = angle + dt * speed
    return torch.stack([angle, speed], -1)


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


make_net = Koopman

FAMILY = Family("koopman", make_net, load, d=500, epochs=25, loss="mse", metric=relative_l2, minimize=True)

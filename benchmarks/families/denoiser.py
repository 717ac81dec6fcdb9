"""A denoising diffusion model (Ho et al. 2020, arXiv:2006.11239): an MLP that predicts the noise in a digit.

Here because its loss draws noise in every batch, and its target has no best constant answer to be told from.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from families.data import cut, pixels
from families.family import Batch, Family, Splits

LEVELS = 100
"""Levels of noise."""


class Denoiser(nn.Module):
    """Noisy images, (N, 64), and their levels, (N,) -> the noise, (N, 64). The level shifts two residual layers."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 64)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        angle = level.unsqueeze(1) * torch.exp(-math.log(1000) * torch.arange(16, device=x.device) / 16)
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.first(x)
        for layer in self.layers:
            h = h + layer(functional.silu(h + time))
        return self.last(functional.silu(h))


def load() -> Splits:
    """The digits in [-1, 1], as inputs and as targets."""
    x, _ = pixels()
    return cut(2 * x - 1, 2 * x - 1, 1200, 300)


def noise_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the noise; in evaluation mode levels and noise are the same in every call."""
    x = batch[0]
    drawn = None if model.training else torch.Generator().manual_seed(0)
    level = torch.randint(LEVELS, (len(x),), generator=drawn)
    noise = torch.randn(x.shape, generator=drawn)
    kept = torch.cos(math.pi / 2 * (level + 1) / (LEVELS + 1)).square().unsqueeze(1)  # cosine schedule
    return functional.mse_loss(model(kept.sqrt() * x + (1 - kept).sqrt() * noise, level.float()), noise)


make_net = Denoiser

FAMILY = Family("denoiser", make_net, load, d=1500, epochs=40, loss=noise_error, minimize=True)

"""A denoising diffusion model (Ho et al. 2020, arXiv:2006.11239): a network that predicts the noise in a digit.

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


class Block(nn.Module):
    """x + convolutions of x that the time shifts in between, (N, C, 8, 8)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm, self.time = nn.GroupNorm(4, channels), nn.Linear(16, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(functional.silu(x)) + self.time(time)[:, :, None, None]
        return x + self.last(functional.silu(self.norm(h)))


class Denoiser(nn.Module):
    """Noisy images, (N, 1, 8, 8), and their levels, (N,) -> the noise, (N, 1, 8, 8)."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 16), nn.SiLU())
        self.first, self.last = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, 1, 3, padding=1)
        self.blocks = nn.ModuleList([Block(channels) for _ in range(2)])

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        angle = level.unsqueeze(1) * torch.exp(-math.log(1000) * torch.arange(8, device=x.device) / 8)
        time, h = self.time(torch.cat([angle.sin(), angle.cos()], 1)), self.first(x)
        for block in self.blocks:
            h = block(h, time)
        return self.last(functional.silu(h))


def load() -> Splits:
    """The digits in [-1, 1], as inputs and as targets."""
    x, _ = pixels()
    x = (2 * x - 1).view(-1, 1, 8, 8)
    return cut(x, x, 1200, 300)


def noise_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the noise; in evaluation mode levels and noise are the same in every call."""
    x = batch[0]
    drawn = None if model.training else torch.Generator().manual_seed(0)
    level = torch.randint(LEVELS, (len(x),), generator=drawn)
    noise = torch.randn(x.shape, generator=drawn)
    kept = torch.cos(math.pi / 2 * (level + 1) / (LEVELS + 1)).square().view(-1, 1, 1, 1)  # cosine
    return functional.mse_loss(model(kept.sqrt() * x + (1 - kept).sqrt() * noise, level.float()), noise)


make_net = Denoiser

FAMILY = Family("denoiser", make_net, load, d=800, epochs=20, loss=noise_error, minimize=True)

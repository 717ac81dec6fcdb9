"""A diagonal state-space network, S4D-Lin (Gu et al. 2022, arXiv:2206.11893), on
oscillations in noise.

Here because its poles are complex and start at -1/2 + i pi n, a chosen ramp in one part and a constant in the other,
and its log steps at uniform random numbers around -4: what a seed's normal numbers replace badly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from families.data import cut
from families.family import Family, Splits, accuracy


class S4D(nn.Module):
    """A convolution with the impulse response of `channels` diagonal systems of N states each, (B, L, H) alike."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        imaginary = torch.pi * torch.arange(float(states)).repeat(channels, 1)
        self.A = nn.Parameter(torch.complex(torch.full((channels, states), -0.5), imaginary))
        self.C = nn.Parameter(torch.randn(channels, states, dtype=torch.cfloat))
        self.D = nn.Parameter(torch.randn(channels))
        low, high = math.log(0.001), math.log(0.1)
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(channels))
        self.output = nn.Linear(channels, 2 * channels)

    def kernel(self, length: int) -> Tensor:
        """The impulse response, (H, L): zero-order hold of the systems with B = 1."""
        A = torch.complex(self.A.real.clamp(max=-1e-4), self.A.imag)
        step = A * self.log_dt.exp().unsqueeze(-1)  # (H, N)
        powers = (step.unsqueeze(-1) * torch.arange(length, device=step.device)).exp()  # (H, N, L)
        return 2 * torch.einsum("hn,hnl->hl", self.C * (step.exp() - 1) / A, powers).real

    def forward(self, x: Tensor) -> Tensor:
        length, u = x.shape[1], x.mT
        spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(self.kernel(length), n=2 * length)
        y = torch.fft.irfft(spectrum, n=2 * length)[..., :length] + self.D.unsqueeze(-1) * u
        return functional.glu(self.output(functional.gelu(y.mT)), -1)


class Sequence(nn.Module):
    """(B, 64, 1) -> (B, 10): blocks with residuals and norms, the mean over the places, a linear classifier."""

    def __init__(self, channels: int = 24, states: int = 8, layers: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, channels)
        self.blocks = nn.ModuleList([S4D(channels, states) for _ in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(layers)])
        self.decoder = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = norm(x + block(x))
        return self.decoder(x.mean(1))


def load() -> Splits:
    """Oscillations of 64 steps, (N, 64, 1), of any phase, in noise: which of ten frequencies?"""
    drawn, n = torch.Generator().manual_seed(0), 1800
    y = torch.randint(10, (n,), generator=drawn)
    frequency = 0.02 * 1.35**y * (1 + 0.05 * torch.randn(n, generator=drawn))  # cycles a step, up to 0.3
    phase = torch.rand(n, generator=drawn)
    angle = 2 * torch.pi * (frequency.unsqueeze(1) * torch.arange(64) + phase.unsqueeze(1))
    x = angle.sin() + 0.5 * torch.randn(n, 64, generator=drawn)
    return cut(x.unsqueeze(-1), y, 1200, 300)


make_net = Sequence

FAMILY = Family("s4d", make_net, load, d=400, epochs=20, metric=accuracy)

"""An image as a network: from the place of a pixel to its gray, with sines as activations.

Sitzmann, Martel, Bergman, Lindell, Wetzstein 2020, "Implicit Neural Representations with Periodic Activation
Functions", https://arxiv.org/abs/2006.09661.
"""

from __future__ import annotations

import math

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

SIDE, OMEGA = 48, 20.0


class Sine(nn.Module):
    """sin(OMEGA (W x + b)), started as the paper does."""

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / OMEGA
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(OMEGA * self.linear(x))


def make_net(width: int = 48) -> nn.Module:
    """Places, (N, 2) -> gray, (N, 1)."""
    return nn.Sequential(Sine(2, width, first=True), Sine(width, width), Sine(width, width), nn.Linear(width, 1))


def image() -> Tensor:
    """Part of scikit-learn's picture of a flower, (SIDE, SIDE) values in [-1, 1]."""
    gray = torch.tensor(load_sample_image("flower.jpg"), dtype=torch.float32).mean(-1)[:400, 120:520]
    small = functional.interpolate(gray[None, None], (SIDE, SIDE), mode="area")[0, 0]
    return 2 * (small - small.min()) / (small.max() - small.min()) - 1


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """All pixels, three times: what is asked for is this one image, and nothing between its pixels."""
    line = torch.linspace(-1, 1, SIDE)
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).view(-1, 2)
    held = TensorDataset(places, image().view(-1, 1))
    return held, held, held


def psnr(outputs: Tensor, y: Tensor) -> Tensor:
    """The ratio of peak signal to noise, in decibels, of values from -1 to 1."""
    return 10 * torch.log10(4 / functional.mse_loss(outputs, y))


LOSS, METRIC, EPOCHS, BATCH_SIZE, LR = "mse", psnr, 30, 128, 5e-3
THRESHOLD = 25.0
LITERATURE = """About 50 dB on an image of 256 x 256 pixels with layers of 256 units and thousands of steps (Sitzmann et
al. 2020); about 30 dB with networks of some thousand weights (Dupont et al. 2021, COIN, arXiv:2103.03123)."""

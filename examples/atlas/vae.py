"""A variational autoencoder of digits.

Kingma, Welling 2014, "Auto-Encoding Variational Bayes", https://arxiv.org/abs/1312.6114.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

LATENT = 6


class VAE(nn.Module):
    """Images, (N, 64) in [0, 1], and noise, (N, LATENT) -> logits of the pixels, mean and log variance of the code."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, width), nn.ReLU(), nn.Linear(width, 64))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        code = mean if noise is None else mean + (log_variance / 2).exp() * noise
        return self.decoder(code), mean, log_variance


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """1,200, 300 and 297 digits, as inputs and as targets."""
    x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    parts = (x[:1200], x[1200:1500], x[1500:])
    train, validation, test = (TensorDataset(part, part) for part in parts)
    return train, validation, test


def negative_elbo(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Nats an image: cross-entropy of the gray pixels and divergence of the code, less the entropy of the pixels
    themselves, which no model can save. In evaluation mode the noise is the same in every call."""
    x = batch[0]
    drawn = None if model.training else torch.Generator().manual_seed(0)
    logits, mean, log_variance = model(x, torch.randn(len(x), LATENT, generator=drawn))
    pixels = functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    floor = functional.binary_cross_entropy(x, x, reduction="none").sum(1)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
    return (pixels - floor + divergence).mean()


make_net = VAE
LOSS, MINIMIZE, EPOCHS, LR = negative_elbo, True, 10, 1e-2
THRESHOLD = 14.0
LITERATURE = """On binary MNIST about 100 nats (Kingma and Welling 2014); of small gray digits there is no figure."""

"""Networks of every kind that users bring, each with data, loss and metric: small enough to fit in a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from subcompress import Data
from subcompress.data import Split


@dataclass(frozen=True)
class Case:
    """make: the factory; data: its splits; options: what `fit` is told."""

    make: Callable[[], nn.Module]
    data: Callable[[], Data]
    options: dict[str, Any]


def _splits(x: Any, y: Tensor) -> Data:
    cut = [slice(0, 192), slice(192, 224), slice(224, 256)]
    take = [(tuple(t[c] for t in x) if isinstance(x, tuple) else x[c], y[c]) for c in cut]
    return Data(*[Split(*pair) for pair in take])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def blobs() -> Data:
    """Images (1, 12, 12) with a bright quarter: which one?"""
    g = _generator()
    y = torch.randint(0, 4, (256,), generator=g)
    x = torch.randn(256, 1, 12, 12, generator=g)
    for i, k in enumerate(y.tolist()):
        x[i, 0, 6 * (k // 2) : 6 * (k // 2) + 6, 6 * (k % 2) : 6 * (k % 2) + 6] += 1.0
    return _splits(x, y)


def pictures() -> Data:
    """Images (1, 12, 12) of one wave each."""
    g = _generator()
    t = torch.linspace(0, 6.28, 12)
    phase = torch.rand(256, 1, 1, generator=g) * 6.28
    x = torch.sin(t[:, None] + phase) * torch.cos(t + phase)
    return _splits(2 * x.unsqueeze(1), torch.zeros(256))


def tokens() -> Data:
    """Sequences (6,) of 16 tokens: which of four comes most often among the first?"""
    g = _generator()
    y = torch.randint(0, 4, (256,), generator=g)
    x = torch.randint(0, 16, (256, 6), generator=g)
    x[:, ::2] = y[:, None]
    return _splits(x, y)


def signals() -> Data:
    """Waves (32,) of one of four frequencies."""
    g = _generator()
    y = torch.randint(0, 4, (256,), generator=g)
    t = torch.arange(32) / 32
    phase = torch.rand(256, 1, generator=g) * 6.28
    x = torch.sin(6.2832 * (2 + 3 * y[:, None]) * t + phase) + 0.2 * torch.randn(256, 32, generator=g)
    return _splits(x, y)


def graphs() -> Data:
    """Features (6, 5) and adjacency (6, 6) of small graphs; the class is that of most nodes' features."""
    g = _generator()
    y = torch.randint(0, 3, (256,), generator=g)
    features = torch.randn(256, 6, 5, generator=g)
    features[torch.arange(256), :, y] += 1.0
    adjacency = (torch.rand(256, 6, 6, generator=g) < 0.4).float()
    adjacency = ((adjacency + adjacency.transpose(1, 2)) > 0).float() + torch.eye(6)
    return _splits((features, adjacency / adjacency.sum(-1, keepdim=True)), y)


def points() -> Data:
    """Points (2,) with the height of a wave there; a field is trained to have its slopes."""
    x = torch.rand(256, 2, generator=_generator()) * 2 - 1
    return _splits(x, torch.sin(2 * x[:, :1]) * x[:, 1:])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4))


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4),
    )  # fmt: skip


class Gru(nn.Module):
    """(N, 6) tokens -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.rnn = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0][:, -1])


class Transformer(nn.Module):
    """(N, 6) tokens -> (N, 16) scores of the next token, with the embedding tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.norm = nn.LayerNorm(16)
        self.decoder = nn.Linear(16, 16, bias=False)
        self.decoder.weight = self.embed.weight
        self.register_buffer("table", _positions(6, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.encoder(self.embed(x) + self.table)).mean(1))


def _positions(length: int, width: int) -> Tensor:
    """Vaswani et al. 2017 (arXiv:1706.03762), section 3.5."""
    angle = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angle.sin(), angle.cos()], 1)


class Fourier(nn.Module):
    """(N, 32) signals -> (N, 4), through complex weights on their spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8, 17, dtype=torch.complex64) / 17**0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((torch.fft.rfft(x) @ self.filter.T).abs())


class Graph(nn.Module):
    """Features (N, 6, 5) and adjacency (N, 6, 6) -> (N, 3): two rounds of messages (Kipf, Welling 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        return (adjacency @ self.second((adjacency @ self.first(features)).relu())).mean(1)


class Field(nn.Module):
    """(N, 2) -> (N, 1), smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 24), nn.Linear(24, 24), nn.Linear(24, 1)])
        self.frequency = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(self.frequency * self.layers[0](x))
        return self.layers[2](torch.sin(self.layers[1](x)))


def slopes(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """How far the field's gradient is from the wave's: the weights' gradient goes through it (SIREN, Sitzmann 2020)."""
    x = batch[0].clone().requires_grad_()
    (found,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    true = torch.stack([2 * torch.cos(2 * x[:, 0]) * x[:, 1], torch.sin(2 * x[:, 0])], 1)
    return (found - true).square().mean()


class Vae(nn.Module):
    """(N, 1, 12, 12) -> its reconstruction; the loss uses `encode` and `decode`."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(144, 12), nn.Linear(6, 144)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int32))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.down(x.flatten(1)).chunk(2, 1)
        return mean, log_variance

    def decode(self, code: Tensor) -> Tensor:
        return self.up(code).view(-1, 1, 12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])


def evidence(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The negative evidence lower bound (Kingma, Welling 2014), a step counted in a buffer."""
    x, _ = batch
    mean, log_variance = module.encode(x)
    code = mean + torch.exp(log_variance / 2) * torch.randn_like(mean) if module.training else mean
    if module.training:
        module.steps += 1
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
    return functional.mse_loss(module.decode(code), x, reduction="sum") / len(x) + divergence


def negative_distance(outputs: Tensor, y: Tensor) -> float:
    """A metric of the user's: more is better."""
    return -float((outputs - y).abs().mean())


class Noisy(Dataset[Any]):
    """A data set that is no tensor: it adds noise whenever an example is asked for; x is a dict."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[dict[str, Tensor], Tensor]:
        x, y = self.data[i]
        return {"image": x + 0.1 * torch.randn(x.shape)}, y


class Named(nn.Module):
    """Takes its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def noisy_blobs() -> Data:
    data = blobs()
    return Data(Noisy(data.train), Noisy(data.validation), Noisy(data.test))


CASES: dict[str, Case] = {
    "mlp": Case(mlp, blobs, {}),
    "batch norm": Case(batch_norm, blobs, {}),
    "gru": Case(Gru, tokens, {}),
    "transformer": Case(Transformer, tokens, {}),
    "complex": Case(Fourier, signals, {}),
    "graph": Case(Graph, graphs, {}),
    "field": Case(Field, points, {"loss": slopes}),
    "vae": Case(Vae, pictures, {"loss": evidence}),
    "dict": Case(Named, noisy_blobs, {}),
    "regression": Case(Field, points, {"loss": "mse", "metric": negative_distance}),
}

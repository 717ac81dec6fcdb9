"""A causal transformer that writes English letter by letter.

Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762; as in Radford et al. 2019, GPT-2,
norms come first, and the table of letters is shared with the head.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

LETTERS, LENGTH = " abcdefghijklmnopqrstuvwxyz", 32
"""All else is a space."""


class Block(nn.Module):
    """Attention to what came before and an MLP, each added to x, (N, L, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    """Letters, (N, L) -> logits of the next one, (N, L, 27)."""

    def __init__(self, width: int = 48, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(len(LETTERS), width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        for table in (self.letters, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.letters(letters) + self.places.weight[: letters.shape[1]]
        return self.norm(self.blocks(x)) @ self.letters.weight.T


def text() -> str:
    """What scikit-learn says of its data sets, 14,000 letters."""
    loads = (load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine)
    words = " ".join(load().DESCR.lower() for load in loads)
    return " ".join("".join(c if c in LETTERS else " " for c in words).split())


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Overlapping pieces of 32 letters; every tenth stretch of 320 is for validation, every tenth for the test."""
    codes = torch.tensor([LETTERS.index(c) for c in text()])
    stretches = codes[: len(codes) // 320 * 320].view(-1, 320)
    which = torch.arange(len(stretches)) % 10
    splits = [stretches[which < 8], stretches[which == 8], stretches[which == 9]]
    pieces = [s.unfold(1, LENGTH + 1, 4 if i == 0 else LENGTH).reshape(-1, LENGTH + 1) for i, s in enumerate(splits)]
    train, validation, test = (TensorDataset(p[:, :-1].contiguous(), p[:, 1:].contiguous()) for p in pieces)
    return train, validation, test


def nats(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of a letter."""
    return functional.cross_entropy(outputs.flatten(0, 1), y.flatten())


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The same of a batch."""
    return nats(model(batch[0]), batch[1])


make_net = GPT
LOSS, METRIC, MINIMIZE, EPOCHS, BATCH_SIZE, LR = loss, nats, True, 12, 64, 4e-3
THRESHOLD = 2.4
LITERATURE = """1.88 nats a letter on Shakespeare with 0.8 million weights (nanoGPT's README, its small model on a
CPU); English letters one by one take 2.8 nats, after one letter 2.3, after two 2.1 (Shannon 1951)."""

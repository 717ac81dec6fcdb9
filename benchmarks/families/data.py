"""Data that several families learn from: scikit-learn's digits, which come with it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from families.family import Splits


def cut(x: Tensor, y: Tensor, train: int, validation: int) -> Splits:
    """The first rows for training, the next ones for validation, what is left for the test."""
    parts = (slice(0, train), slice(train, train + validation), slice(train + validation, None))
    a, b, c = (TensorDataset(x[s], y[s]) for s in parts)
    return a, b, c


def pixels() -> tuple[Tensor, Tensor]:
    """The 1,797 images of 8 x 8 values in [0, 1], (N, 64), and their labels, (N,)."""
    from sklearn.datasets import load_digits

    held = load_digits()
    return torch.tensor(held.data, dtype=torch.float32) / 16, torch.tensor(held.target)


def digits(*shape: int) -> Splits:
    """1,200, 300 and 297 digits, each image in that shape, by default (64,)."""
    x, y = pixels()
    return cut(x.view(len(x), *(shape or (64,))), y, 1200, 300)

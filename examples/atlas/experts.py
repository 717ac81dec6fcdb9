"""A mixture of experts: the two of four networks that the gate likes best read a digit.

Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton, Dean 2017, "Outrageously Large Neural Networks: The Sparsely-Gated
Mixture-of-Experts Layer", https://arxiv.org/abs/1701.06538.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def expert() -> nn.Module:
    """(N, 64) -> (N, 10)."""
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


class Experts(nn.Module):
    """(N, 64) -> (N, 10): the two of four experts that the gate likes best, weighted. known: experts the gate knows."""

    def __init__(self, known: int = 4) -> None:
        super().__init__()
        self.experts = nn.ModuleList([expert() for _ in range(4)])
        self.gate = nn.Linear(64, known)

    def forward(self, x: Tensor) -> Tensor:
        likings = self.gate(x)
        best, which = likings.topk(2, 1)
        weights = torch.zeros_like(likings).scatter(1, which, best.softmax(1))
        outputs = torch.stack([e(x) for e in self.experts[: likings.shape[1]]], 1)  # (N, known, 10)
        return (weights.unsqueeze(-1) * outputs).sum(1)


def load() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """1,200, 300 and 297 digits, (N, 64)."""
    held = load_digits()
    x, y = torch.tensor(held.data, dtype=torch.float32) / 16, torch.tensor(held.target)
    parts = (slice(1200), slice(1200, 1500), slice(1500, None))
    train, validation, test = (TensorDataset(x[part], y[part]) for part in parts)
    return train, validation, test


make_net = Experts
METRIC, EPOCHS, LR = "accuracy", 12, 2e-2
THRESHOLD = 0.9
LITERATURE = """97 % on these digits by a support vector machine (scikit-learn's example of their classification, half
of the images for training)."""

"""A mixture of experts (Shazeer et al. 2017, arXiv:1701.06538), one of which is never asked.

Here because real networks hold parameters that no loss reaches: their gradient is none, and nothing is known of how
far they move.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from families.data import digits
from families.family import Family, accuracy


def expert() -> nn.Module:
    """(N, 64) -> (N, 10)."""
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


class Experts(nn.Module):
    """(N, 64) -> (N, 10): the two experts that the gate likes best, weighted; of four, the gate knows three."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([expert() for _ in range(4)])
        self.gate = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        best, which = self.gate(x).topk(2, 1)
        weights = torch.zeros(len(x), 3, device=x.device, dtype=best.dtype).scatter(1, which, best.softmax(1))
        outputs = torch.stack([e(x) for e in self.experts[:3]], 1)  # (N, 3, 10)
        return (weights.unsqueeze(-1) * outputs).sum(1)


make_net, load = Experts, digits

FAMILY = Family("experts", make_net, load, d=600, epochs=20, metric=accuracy)

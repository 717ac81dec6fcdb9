"""Parameters whose starts somebody chose: physical constants, log deviations, slopes (Press et al.
2022, arXiv:2108.12409), a unit quaternion, centers on a grid, poles of a state-space layer (Gu et al. 2022,
arXiv:2206.11893).

Here because each of them means something at its start. A random start of the same standard deviation means nothing,
and values that stay where they were cannot be learned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from families.data import digits
from families.family import Family, Trained, accuracy, reals

NAMES = ("physical", "log_sigma", "slopes", "rotation", "centers", "poles")
"""The parameters whose starts were chosen."""


class Chosen(nn.Module):
    """(N, 64) -> (N, 10): a linear classifier, plus what the chosen parameters add to every example."""

    def __init__(self) -> None:
        super().__init__()
        self.physical = nn.Parameter(torch.tensor([9.81, 0.1, 1.0]))
        self.log_sigma = nn.Parameter(torch.tensor([-2.0, -2.5, -3.0, -2.2]))
        self.slopes = nn.Parameter(torch.tensor([0.5, 0.25, 0.125, 0.0625]).view(4, 1, 1))
        self.rotation = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.centers = nn.Parameter(torch.linspace(-1, 1, 12))
        imaginary = torch.pi * torch.arange(8.0).repeat(16, 1)
        self.poles = nn.Parameter(torch.complex(torch.full((16, 8), -0.5), imaginary))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        held = (
            self.physical,
            self.log_sigma,
            self.slopes,
            self.rotation,
            self.centers,
            self.poles.real,
            self.poles.imag,
        )
        classes = torch.linspace(-1, 1, 10)
        more = torch.stack([0.1 * v.mean() * classes**k for k, v in enumerate(held, 1)])
        return self.head(x) + more.sum(0)


def check(trained: Trained) -> list[str]:
    """Every chosen parameter starts at its value, and moves by at least a tenth of its move in direct training."""
    fresh, wrong = dict(Chosen().named_parameters()), []
    rebuilt, direct = (dict(m.named_parameters()) for m in (trained.rebuilt, trained.direct))
    for name in NAMES:
        start = reals(fresh[name])
        if float((reals(trained.start[name]) - start).abs().max()) > 1e-5 * float(start.abs().max()):
            wrong.append(f"{name} does not start at its value")
        mine, whole = (float((reals(m[name]) - start).norm()) for m in (rebuilt, direct))
        if mine < whole / 10:
            wrong.append(f"{name} moves by {mine:.2g}, directly by {whole:.2g}")
    return wrong


make_net, load = Chosen, digits

FAMILY = Family("chosen", make_net, load, d=200, epochs=20, metric=accuracy, check=check)

"""Parameters that forward reads from a plain list made in __init__, as in many re-implementations of published code.

Here because replacing the parameters does not reach the list: training would move other weights than those that are
used, without a word. The goal is an error that names them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from families.data import digits
from families.family import Family, accuracy


class Cached(nn.Module):
    """(N, 64) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 32), nn.Linear(32, 10), nn.Linear(10, 10)
        self.layers = [(self.a.weight, self.a.bias), (self.b.weight, self.b.bias)]

    def forward(self, x: Tensor) -> Tensor:
        (w, b), (v, c) = self.layers
        return self.head(functional.linear(functional.linear(x, w, b).tanh(), v, c).tanh())


make_net, load = Cached, digits

FAMILY = Family("cached", make_net, load, d=200, epochs=5, metric=accuracy, error=("a.weight",))

"""Networks that are legal and odd: they give a weight, an input, the same twice, a constant, or truth values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Odd(nn.Module):
    """(N, 6) -> whatever `give` makes of it, a 6 x 4 weight, a scalar, and a buffer of integers."""

    def __init__(self, give: Callable[[Odd, Tensor], Any]) -> None:
        super().__init__()
        self.give = give
        self.w = nn.Parameter(torch.randn(6, 4))
        self.scale = nn.Parameter(torch.tensor(4.5))
        self.register_buffer("table", torch.arange(4.0) + 10, persistent=False)
        self.register_buffer("count", torch.tensor([3, 1, 2]))
        self.alias = self.w.detach()

    def forward(self, x: Tensor) -> Any:
        return self.give(self, x)


GIVES: dict[str, Callable[[Odd, Tensor], Any]] = {
    "a weight": lambda m, x: (x @ m.w, m.w),
    "a scalar weight": lambda m, x: (x @ m.w, m.scale),
    "a view of a weight": lambda m, x: (x @ m.w, m.w.t()),
    "a buffer": lambda m, x: (x @ m.w, m.count),
    "a buffer that is not stored": lambda m, x: (x @ m.w, m.table),
    "an alias": lambda m, x: x @ m.alias,
    "the input": lambda m, x: (x @ m.w, x),
    "one thing twice": lambda m, x: (y := x @ m.w, y),
    "a constant": lambda m, x: (x @ m.w, torch.arange(5.0)),
    "no weight at all": lambda m, x: 2 * x,
    "truth values": lambda m, x: (x @ m.w) > 0,
}

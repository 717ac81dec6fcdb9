"""PyTorch's optimizers without the import of its compiler: seconds before the first step of every process that trains.

`torch.optim` keeps torch.compile out of the methods of an optimizer by wrapping them, and what wraps them imports
`torch._dynamo` even where nothing is ever compiled. The methods inside of those wrappers compute the same.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


class Uncompiled(torch.optim.Optimizer):
    """An optimizer that torch.compile is not to meet: only eager code calls it."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As PyTorch's."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As PyTorch's."""
        inspect.unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)


class Adam(Uncompiled, torch.optim.Adam):
    """PyTorch's Adam: the same options, the same numbers."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every parameter that has a gradient."""
        return inspect.unwrap(torch.optim.Adam.step)(self, closure)


__all__ = ["Adam", "Uncompiled"]

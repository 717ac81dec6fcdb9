"""Data sets in memory, and nested structures of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Tree = Any
"""A tensor, or a tuple, list or dict of them."""

IGNORED = -100
"""The label that losses and metrics of classes and of tokens leave out."""


def tree_map(f: Callable[[Tensor], Tensor], x: Tree) -> Tree:
    """Apply f to every tensor in x."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, dict):
        return {k: tree_map(f, v) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(tree_map(f, v) for v in x)
    return x


def tensors_in(x: Tree) -> Iterator[Tensor]:
    """Return every tensor in x."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (dict, tuple, list)):
        for v in x.values() if isinstance(x, dict) else x:
            yield from tensors_in(v)


def is_finite(t: Tensor) -> bool:
    """Return whether no value is nan or infinite."""
    return not (t.is_floating_point() or t.is_complex()) or bool(t.isfinite().all())


def to_device(x: Tree, device: torch.device | str) -> Tree:
    """Move x to the device: every tensor in it, and any other object with a method `to`."""
    if isinstance(x, dict):
        return {k: to_device(v, device) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(to_device(v, device) for v in x)
    if not callable(move := getattr(x, "to", None)):
        return x
    moved = move(device)
    return x if moved is None else moved  # some objects move in place


class InMemory(Dataset[Any]):
    """A data set in memory, which returns the batch of several indices at once."""

    y: Tree
    """(N, ...) labels or values, or a tree of them."""

    @property
    def varying(self) -> frozenset[str]:
        """The names of inputs whose first axis after the batch's is padded to the longest example of a batch."""
        return frozenset()

    def tensors(self) -> Iterator[Tensor]:
        """Return all tensors of the data set."""
        raise NotImplementedError

    def arranged(self, order: Tensor, batch_size: int) -> Tensor:
        """Return the order in which training reads the examples, given a random one."""
        return order

    def swept(self, batch_size: int) -> tuple[Tensor, int]:
        """Return the order in which an evaluation reads the examples, and how many at a time."""
        return torch.arange(len(self)), batch_size

    def __len__(self) -> int:
        """Return the number of examples."""
        raise NotImplementedError

"""Trees of tensors, and data sets that are held in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

Tree = Any
"""A tensor, or a tuple, list or dict of them."""


def tree_map(f: Callable[[Tensor], Tensor], x: Tree) -> Tree:
    """f of every tensor in x."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, dict):
        return {k: tree_map(f, v) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(tree_map(f, v) for v in x)
    return x


def tensors_in(x: Tree) -> Iterator[Tensor]:
    """Every tensor in x."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (dict, tuple, list)):
        for v in x.values() if isinstance(x, dict) else x:
            yield from tensors_in(v)


def is_finite(t: Tensor) -> bool:
    """Whether no value is nan or inf."""
    return not (t.is_floating_point() or t.is_complex()) or bool(t.isfinite().all())


def to_device(x: Tree, device: torch.device | str) -> Tree:
    """x on the device: every tensor in it, and any other object that has a method `to`."""
    if isinstance(x, dict):
        return {k: to_device(v, device) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return tuple(to_device(v, device) for v in x)
    if not callable(move := getattr(x, "to", None)):
        return x
    moved = move(device)
    return x if moved is None else moved  # some objects move in place


class InMemory(Dataset[Any]):
    """A data set in memory, which gives the batch of several indices at once."""

    y: Tree
    """(N, ...) labels or values, or a tree of them."""

    @property
    def varying(self) -> frozenset[str]:
        """Names of the inputs whose first axis, after the batch's, is padded to the longest of a batch."""
        return frozenset()

    def tensors(self) -> Iterator[Tensor]:
        """All that it holds."""
        raise NotImplementedError

    def arranged(self, order: Tensor, batch_size: int) -> Tensor:
        """The examples of an order, in the one that training takes them in."""
        return order

    def swept(self, batch_size: int) -> tuple[Tensor, int]:
        """All examples, in the order in which an evaluation goes through them, and how many at a time."""
        return torch.arange(len(self)), batch_size

    def __len__(self) -> int:
        """Examples."""
        raise NotImplementedError

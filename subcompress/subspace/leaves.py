"""Does training reach the weights that a network reads? Found in the graph of one forward pass.

A Subspace gives the parameters of its copy new values for every pass. A module that keeps a parameter elsewhere, in a
plain list or in a closure, reads a value that is never trained and not packed, without any error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from types import CellType
from typing import Any

import torch
from torch import Tensor, nn

from subcompress.errors import SubcompressError

_DEPTH, _MOST = 4, 10_000
"""The most levels of attributes of a module that are followed, and the most values."""


def leaves_of(loss: Tensor) -> list[Tensor]:
    """The leaves that a backward pass from a loss adds a gradient to."""
    found: list[Tensor] = []
    seen: set[Any] = set()  # holds the nodes, so that each keeps its one object
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.append(leaf)
        waiting += [following for following, _ in node.next_functions]
    return found


def attributes(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that modules keep in addition to their parameters and buffers, with their places."""
    for prefix, child in module.named_modules():
        own = {k: v for k, v in vars(child).items() if k not in ("_parameters", "_buffers", "_modules")}
        for name, value in _tensors_in(own, set(), _DEPTH):
            yield (f"{prefix}.{name}" if prefix else name), value


def plain_leaves(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that require a gradient and are attributes of a module, or in one. To be asked for before a pass: what
    the pass itself makes, as inputs of a derivative, is none of them."""
    found: dict[str, Tensor] = {}
    for name, value in attributes(module):
        if value.requires_grad and value.is_leaf:
            found.setdefault(name, value)
    return found


def check_leaves(
    loss: Tensor, former: Iterable[tuple[str, Tensor]], plain: Mapping[str, Tensor], z: Tensor
) -> str | None:
    """Raise SubcompressError if the loss depends on parameters that are not the module's any more, or on tensors
    that the module keeps outside of its state dict; returns a warning where it depends on parameters of something else.

    former: names and parameters; plain: what `plain_leaves` gave; z: what is trained.
    """
    reached = {id(leaf) for leaf in leaves_of(loss)}
    if stale := [name for name, p in former if id(p) in reached]:
        raise SubcompressError(
            f"{_some(stale)} would not train, because the model reads a reference to it that it keeps "
            f"elsewhere: read self.{stale[0]} in forward, or keep it in an nn.ParameterList (detach what is to "
            "stay as it is)"
        )
    if loose := [name for name, t in plain.items() if id(t) in reached]:
        raise SubcompressError(
            f"{_some(loose)} is trained but not in the state dict, so that it cannot be packed: make it an "
            "nn.Parameter, or make its layer an attribute of the model (nn.ModuleList, nn.ParameterList), or detach it"
        )
    others = [tuple(leaf.shape) for leaf in leaves_of(loss) if isinstance(leaf, nn.Parameter) and leaf is not z]
    if others:
        return (
            f"the loss depends on {len(others)} parameters that are not the model's (the first of shape "
            f"{others[0]}): they do not train and are not packed; compute a teacher's outputs under "
            "torch.no_grad, and make layers that are to be trained part of the model"
        )
    return None


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors whose values differ."""
    return [name for name, tensor in after.items() if not torch.equal(before[name], tensor.detach())]


def check_constraints(in_training: list[str], in_evaluation: list[str]) -> None:
    """Raise SubcompressError if a forward pass changes weights in training that it leaves alone in evaluation: the
    file holds them as they were before."""
    if odd := [name for name in in_training if name not in in_evaluation]:
        raise SubcompressError(
            f"the forward pass changes {_some(odd)} in place in training, but not in evaluation: compute the "
            "constrained value in forward, or with torch.nn.utils.parametrize"
        )


def _tensors_in(value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in containers, in plain objects and in closures of functions, with their places."""
    if isinstance(value, Tensor):
        yield "", value
        return
    if depth < 0 or id(value) in seen or len(seen) > _MOST:
        return
    seen.add(id(value))
    for name, inner in _items(value):
        for rest, tensor in _tensors_in(inner, seen, depth - 1):
            yield f"{name}.{rest}".rstrip("."), tensor


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((str(k), v) for k, v in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(i), v) for i, v in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from _items([value.func, *value.args, *value.keywords.values()])
    elif isinstance(value, nn.Module):  # in a list, say: no submodule
        yield from value.named_parameters()
    elif closure := getattr(value, "__closure__", None):
        names = value.__code__.co_freevars
        yield from ((n, c.cell_contents) for n, c in zip(names, closure, strict=True) if c != CellType())
    elif not isinstance(value, type) and isinstance(getattr(value, "__dict__", None), dict):
        yield from vars(value).items()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


__all__ = ["changed", "check_constraints", "check_leaves", "leaves_of", "plain_leaves"]

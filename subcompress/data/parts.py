"""A batch that passes through a network in parts, one after the other, so that memory holds the activations of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """A batch in parts. each: for each part, the share of its loss in that of the batch, and the part, (x, y)."""

    each: tuple[tuple[float, Any], ...]


Weight = Callable[[Any], float]
"""The weight of the loss of a part, (x, y): its number of examples, or for some losses its number of labels."""


def in_parts(found: Iterable[Any], count: int, weight: Weight) -> Iterator[Parts]:
    """Each `count` of the batches that are given as the parts of one."""
    coming = iter(found)
    while parts := list(islice(coming, count)):
        yield shared(parts, weight)


def shared(parts: list[Any], weight: Weight) -> Parts:
    """The parts of a batch, each with its share of the loss, without those that count for nothing, whose mean is no
    number; all of them alike where none counts."""
    weights = [1.0] if len(parts) == 1 else [float(weight(part)) for part in parts]
    total = sum(weights)
    shares = [w / total for w in weights] if total else [1 / len(parts)] * len(parts)
    return Parts(tuple((share, part) for share, part in zip(shares, parts, strict=True) if share))


def backward(batch: Any, loss_of: Callable[[Any], Tensor]) -> tuple[Tensor, bool]:
    """The loss of a batch, (), part by part where it comes in `Parts`, and whether it has a gradient, which is added to
    those that there are. It ends with the first part whose loss is not finite; nothing is added for that."""
    losses, depends = list[Tensor](), False
    for share, part in batch.each if isinstance(batch, Parts) else ((1.0, batch),):
        loss = loss_of(part)
        loss = loss if share == 1 else loss * share
        losses.append(loss.detach())
        if not bool(losses[-1].isfinite()):
            break
        if loss.requires_grad:  # not of one that only an expert reads which is not trained
            loss.backward()
            depends = True
    return losses[0] if len(losses) == 1 else torch.stack([x.reshape(()) for x in losses]).sum(), depends


def value(batch: Any, loss_of: Callable[[Any], Tensor]) -> float:
    """The loss of a batch, part by part where it comes in `Parts`."""
    each = batch.each if isinstance(batch, Parts) else ((1.0, batch),)
    return sum(share * float(loss_of(part).detach()) for share, part in each)

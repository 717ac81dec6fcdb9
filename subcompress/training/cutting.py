"""Coordinates that take fewer bytes, changed as little as may be.

A coordinate that becomes zero saves next to nothing, where zeros are no more frequent than ones; a large one that moves
by one step towards zero saves a bit or more. So the ones move that save the most for what they change, unless the
smallest that become zero (`Subspace.shorten`) change less, or one step of each is not enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subcompress.subspace.module import Subspace

UNSEEN = 0.5
"""The initial count of each magnitude."""


def cut(subspace: Subspace, limit: int) -> int:
    """Bring `coded_bytes` of a rounded subspace to at most `limit`, where that can be: z is changed. Returns how many
    coordinates are others than before."""
    before, trained, dead = _whole(subspace), subspace.z.detach().clone(), subspace.rounding.dead
    exact = torch.cat([z / s for z, s in zip(trained.split(subspace.splits), subspace.rounding.steps, strict=True)])

    def change() -> float:
        return float((exact - _whole(subspace)).square().sum())

    subspace.shorten(limit)
    by_zeros, zeros = change(), subspace.rounding.dead
    subspace.rounding.dead = dead
    _nearer_to_zero(subspace, trained, limit)
    if subspace.coded_bytes() > limit or change() > by_zeros:
        with torch.no_grad():
            subspace.z.copy_(trained)
        subspace.rounding.dead = zeros
    return int((before != _whole(subspace)).sum())


def _nearer_to_zero(subspace: Subspace, trained: Tensor, limit: int) -> None:
    """Move as few coordinates as needed by one step, those first that save the most for what they change."""
    order, nearer = _candidates(subspace)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        _move(subspace, trained, nearer, order[:middle])
        low, high = (low, middle) if subspace.coded_bytes() <= limit else (middle + 1, high)
    _move(subspace, trained, nearer, order[:low])


def _candidates(subspace: Subspace) -> tuple[Tensor, Tensor]:
    """Coordinates by what they change for each bit that they save, the least first, and by coordinate the z that is one
    step nearer to zero."""
    ratios, nearer = [], []
    parts = zip(
        subspace.z.detach().split(subspace.splits), subspace.coordinates(), subspace.rounding.steps, strict=True
    )
    for z, c, step in parts:
        size, exact = c.abs(), (z / step).abs()
        bits = -torch.log2(torch.bincount(size, minlength=2) + UNSEEN)  # but for a number that is the same for all
        bits[1:] += 1  # the sign
        below = (size - 1).clamp(min=0)
        saved = bits[size] - bits[below]
        change = (exact - below) ** 2 - (exact - size) ** 2
        ratios.append(torch.where((size > 0) & (saved > 0), change / saved, torch.inf))
        nearer.append(c.sign() * below * step)
    ratio = torch.cat(ratios)
    order = ratio.argsort(stable=True)
    return order[: int(ratio.isfinite().sum())], torch.cat(nearer).to(subspace.z.dtype)


def _move(subspace: Subspace, trained: Tensor, nearer: Tensor, which: Tensor) -> None:
    with torch.no_grad():
        subspace.z.copy_(trained)
        subspace.z[which] = nearer[which]


def _whole(subspace: Subspace) -> Tensor:
    return torch.cat(subspace.coordinates())

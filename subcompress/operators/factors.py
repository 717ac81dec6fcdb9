"""base + left right, the same bits everywhere: the product of two factors of a low rank, added to a matrix.

The product of two float32 numbers is exact in float64. Those of a value are added up one after the other, fused or not,
and the base's value last; the sum is then rounded once to float32, and from there to the dtype (docs/FORMAT.md, section
10). No matrix product is used: libraries add in orders of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from subcompress.support.lazy import torch
from subcompress.tensors.layout import DTYPES
from subcompress.tensors.rounding import TINY, rounded

if TYPE_CHECKING:
    from torch import Tensor

TILE = 1 << 15
"""Values that are computed at a time on the CPU: what a core's cache holds of float64."""

LARGE_TILE = 1 << 22
"""The same on other devices."""


def add_product(place: np.ndarray, base: np.ndarray, left: np.ndarray, right: np.ndarray, skipped: int) -> None:
    """Write base + left right to `place`.

    place, base: (n,) values of the flattened matrix, from number `skipped` of the product on, in dtypes of the format;
    they may be the same memory. left: (rows, rank) float32; right: (rank, columns) float32.
    """
    columns, n = right.shape[1], len(place)
    wide = right.astype(np.float64)
    step = max(1, TILE // columns)
    for first in range(0, len(left), step):
        rows = left[first : first + step].astype(np.float64)
        sums = rows[:, :1] * wide[0]
        for q in range(1, len(wide)):
            sums += rows[:, q : q + 1] * wide[q]
        begin = first * columns
        lo, hi = max(begin - skipped, 0), min(begin + sums.size - skipped, n)
        if lo < hi:
            inside = sums.reshape(-1)[lo + skipped - begin : hi + skipped - begin]
            place[lo:hi] = _added(base[lo:hi], inside, place.dtype)


def _added(base: np.ndarray, sums: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float64:
        return np.asarray(sums + base)
    single = rounded(base, DTYPES["F32"])
    sums += np.where(np.abs(single) >= TINY, single, np.float32(0))
    sums[np.abs(sums) < TINY] = 0
    return rounded(sums, dtype)


def add_product_of_tensors(place: Tensor, base: Tensor, left: Tensor, right: Tensor, skipped: int) -> None:
    """`add_product` for tensors on one device, without gradients."""
    columns, n = right.shape[1], len(place)
    wide = right.double()
    step = max(1, (TILE if place.device.type == "cpu" else LARGE_TILE) // columns)
    for first in range(0, len(left), step):
        rows = left[first : first + step].double()
        sums = rows[:, :1] * wide[0]
        for q in range(1, len(wide)):
            sums.addcmul_(rows[:, q : q + 1], wide[q])
        begin = first * columns
        lo, hi = max(begin - skipped, 0), min(begin + sums.numel() - skipped, n)
        if lo < hi:
            inside = sums.view(-1)[lo + skipped - begin : hi + skipped - begin]
            _add_base(place[lo:hi], base[lo:hi], inside)


def _add_base(place: Tensor, base: Tensor, sums: Tensor) -> None:
    if place.dtype == torch.float64:
        torch.add(sums, base, out=place)
        return
    single = base.float()
    sums += single.where(single.abs() >= TINY, 0.0)
    sums.masked_fill_(sums.abs() < TINY, 0.0)
    place.copy_(sums.float())


__all__ = ["add_product", "add_product_of_tensors"]

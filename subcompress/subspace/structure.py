"""Structure in the values of a network that cannot be built again: what no initializer draws value by value.

Thresholds are many standard errors from chance.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

STORABLE = ("orthogonal", "sparse and random")
"""The structures of starts that initializers draw."""

SMOOTH = "a table, smooth along its axes"

SOME = 1 << 20
"""The most values of a tensor that are examined."""

SAMPLE = 1 << 16
"""The most values of a tensor that are sorted."""


def structure(x: Tensor) -> str:
    """What a seed cannot start alike, in words; empty for independent values."""
    n = x.numel()
    flat = (torch.view_as_real(x) if x.is_complex() else x).reshape(-1)[:SOME].cpu()
    if n == 0 or bool((flat == flat[0]).all()):
        return "constant"
    if (found := _mostly_one(flat.float(), n)) is not None:
        return found
    if n >= 8 and x.ndim == 1 and (bool((flat.diff() > 0).all()) or bool((flat.diff() < 0).all())):
        return "a ramp"
    if x.ndim >= 2 and orthogonal(x.flatten(1)):
        return "orthogonal"
    return SMOOTH if n >= 64 and not x.is_complex() and _smooth(x) else ""


def drawn_structure(x: Tensor) -> str:
    """The same of values that are known to be random: one of STORABLE, or empty."""
    if x.ndim >= 2 and orthogonal(x.flatten(1)):
        return "orthogonal"
    flat = (torch.view_as_real(x) if x.is_complex() else x).reshape(-1)
    return "sparse and random" if len(flat) >= 4 and 2 * int(flat.count_nonzero()) < len(flat) else ""


def orthogonal(w: Tensor) -> bool:
    """Whether the shorter side's vectors (256 of them at most) are orthogonal and of one length."""
    w = w if w.shape[0] <= w.shape[1] else w.T
    if w.shape[0] < 4:
        return False
    return all(_orthogonal(w[:rows]) for rows in (8, 256))  # few tell most


def atoms(values: np.ndarray, few_bits: bool) -> np.ndarray:
    """Which of (n,) values occur more often than values beside them do, (n,): exact zeros, and numbers that somebody
    chose among random ones. few_bits: numbers of half precision are often equal."""
    n = len(values)
    some = values[:: max(1, n // SAMPLE)]
    distinct, counts = np.unique(some, return_counts=True)
    wide = np.pad(counts, 4, constant_values=1)
    near = np.median([wide[i : i + len(counts)] for i in (0, 1, 2, 3, 5, 6, 7, 8)], axis=0)
    often = distinct[counts > np.where((near <= 1) & (not few_bits), _chance(len(some)), 4 * near + 8)]
    found = np.isin(values, often)
    zeros = values == 0
    if not few_bits and np.count_nonzero(zeros) > (0 if n < 100_000 else n / 100_000):
        found |= zeros
    return found


def without(x: Tensor, which: np.ndarray) -> Tensor:
    """A real tensor with the mean of the others in place of the values that `which`, (n,), marks."""
    flat, mask = x.reshape(-1).cpu().double(), torch.from_numpy(which)
    rest = flat[~mask]
    return torch.where(mask, rest.mean() if len(rest) else flat.mean(), flat).view(x.shape)


def distinct_enough(values: np.ndarray, few_bits: bool) -> bool:
    """Whether hardly any of the values are equal, as those of a continuous distribution. few_bits: see `atoms`."""
    some = values[:: max(1, len(values) // SAMPLE)]
    return len(np.unique(some)) >= min(0.9 * len(some), 32 if few_bits else math.inf)


def usual_shape(values: np.ndarray) -> bool:
    """Whether the values spread as a normal, a uniform or a truncated normal distribution does."""
    x = values[:: max(1, len(values) // SOME)].astype(np.float64)
    n = len(x)
    x -= x.mean()
    square = float(np.square(x).mean())
    if n < 8 or not square:
        return False
    x /= math.sqrt(square)
    skewness, kurtosis = float((x**3).mean()), float((x**4).mean())
    return (
        abs(skewness) < 5 * math.sqrt(6 / n)
        and 1.8 - 5 / math.sqrt(n) < kurtosis < 3 + 8 * math.sqrt(24 / n)
        and float(np.abs(x).max()) < math.sqrt(2 * math.log(n)) + 3
    )


def _chance(n: int) -> int:
    """How often one of n random numbers of 24 bits may occur by chance."""
    often = 2
    while 2.0**24 * (n / 2.0**24) ** (often + 1) / math.factorial(often + 1) > 1e-3:
        often += 1
    return often


def _mostly_one(flat: Tensor, n: int) -> str | None:
    """The structure where more than half of the values are equal, None if they are not."""
    some = flat[:: max(1, len(flat) // SAMPLE)]
    common = some.mode().values
    if n < 4 or 2 * int((flat == common).sum()) <= len(flat):
        return None
    return "sparse and random" if len(flat.unique()) > n / 20 + 4 else "sparse"


def _orthogonal(w: Tensor) -> bool:
    w = w.to(torch.complex128 if w.is_complex() else torch.float64)
    gram = (w @ w.conj().T).abs()
    diagonal = gram.diagonal()
    off = (gram - torch.diag(diagonal)).abs().max()
    return bool(off < 1e-3 * diagonal.mean() and diagonal.std() < 1e-3 * diagonal.mean())


def _smooth(x: Tensor) -> bool:
    """Whether neighbors along an axis are alike, in the first of the slices."""
    x = x[: max(8, SOME // max(1, x[0].numel()))].double() if x.ndim else x.double()
    x = x - x.mean()
    limit, square = max(0.4, 8 / math.sqrt(x.numel())), float(x.square().mean())
    for axis in range(x.ndim):
        size = x.shape[axis]
        if size >= 8 and float((x.narrow(axis, 0, size - 1) * x.narrow(axis, 1, size - 1)).mean()) > limit * square:
            return True
    return False

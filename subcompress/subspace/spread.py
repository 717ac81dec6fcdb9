"""Random values of a tensor: their centers and how far they spread, group by group.

One deviation rarely is wrong for a tensor that one initializer drew. A tensor put together of several has slices along
an axis that spread differently: these make groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

SURE = 3.0
"""A measured standard deviation within this many standard errors of a usual one is taken for it."""

FAR = 5.0
"""A difference is real from this many standard errors on, beyond what the largest of n reaches by chance."""

APART = 2 * math.log(1.3)
"""Two variances count as different from this logarithm of their ratio on."""

WIDTH = 2 * math.log(2)
"""The same within one group."""

GROUPS = 6
"""The most groups with different standard deviations."""

LEAST_SLICE = 8
"""The fewest values of a slice that show its standard deviation."""


@dataclass(frozen=True)
class Drawn:
    """Random values that are drawn alike. center: one number, or one of each value where they have centers of their
    own, (values,) float32; std: how far they spread around it; shown: numbers it was measured from; words: what
    usually gives this deviation, empty if nothing does."""

    center: float | np.ndarray
    std: float
    shown: int
    words: str = ""


@dataclass(frozen=True)
class Moments:
    """What builds say of n real numbers. mean: (n,) over the builds; variance: (n,) between them. Of one build alone:
    its values, and the squares of their distances from their median."""

    mean: np.ndarray
    variance: np.ndarray
    builds: int

    @classmethod
    def of_one(cls, values: np.ndarray) -> Moments:
        """Those of one build."""
        values = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
        middle = np.median(values[:: max(1, len(values) >> 16)])  # of slices that spread little, the mean is far off
        return cls(values, np.square(values - middle.astype(values.dtype)), 1)

    def part(self, which: np.ndarray) -> Moments:
        """Those of some of the values, by a mask."""
        return self if which.all() else Moments(self.mean[which], self.variance[which], self.builds)


def alike(value: object, n: int) -> np.ndarray:
    """One value n times, in the memory of one."""
    return np.broadcast_to(np.asarray(value), n)


def grouped(moments: Moments, random: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[Drawn, ...]]:
    """The groups of the values that `random`, (n,), marks: (n,) uint8, 0 for others and 1 + i for those of group i, and
    the groups. shape: what the n values have."""
    return _grouped(moments, random, _labels(moments, random, shape, range(len(shape))))


def grouped_parts(moments: Moments, random: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[Drawn, ...]]:
    """The same for a complex tensor: `shape` ends in 2, its real and imaginary parts, which are told apart where they
    differ."""
    real = np.arange(len(random)) % 2 == 0
    axes = range(len(shape) - 1)
    if not _parts_differ(moments, random, real):
        return _grouped(moments, random, _labels(moments, random, shape, axes))
    parts = [_labels(moments, random & part, shape, axes) for part in (real, ~real)]
    first, second = (0 if labels is None else labels for labels in parts)
    return _grouped(moments, random, np.where(real, first, np.uint8(GROUPS) + second))


def one_group(moments: Moments) -> Drawn:
    """All values as one group."""
    if moments.builds == 1:
        return _of_one(moments.mean)
    n, builds = len(moments.mean), moments.builds
    within = math.sqrt(float(moments.variance.mean(dtype=np.float64)))
    if n > 2 and within:
        middle = float(np.median(moments.mean[:: max(1, n >> 16)]))
        if len(own := _own(moments, middle, within)):
            common = _snapped(middle, within, n, builds)
            centers = np.full(n, common, np.float32)
            step = 2.0 ** math.ceil(math.log2(2 * within))
            centers[own] = np.round(moments.mean[own] / step) * step
            return Drawn(centers, within, n * builds)
    center = _snapped(float(moments.mean.mean(dtype=np.float64)), within, n, builds)
    off = moments.mean - moments.mean.dtype.type(center)
    square = within * within * (builds - 1) / builds + float(np.square(off, out=off).mean(dtype=np.float64))
    return Drawn(center, math.sqrt(square), n * builds)


def close(std: float, usual: float, n: int) -> bool:
    """Whether a deviation that n numbers show may be the usual one."""
    # Few values say little, and their logarithm errs downwards.
    return std > 0 and usual > 0 and abs(math.log(std / usual)) < SURE * math.sqrt(0.5 / n) + 2 / n + 0.002


def _grouped(moments: Moments, random: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, tuple[Drawn, ...]]:
    n = len(random)
    if not random.any():
        return alike(np.uint8(0), n), ()
    if labels is None:
        group = alike(np.uint8(1), n) if random.all() else random.astype(np.uint8)
        return group, (one_group(moments.part(random)),)
    group, found = np.zeros(n, np.uint8), []
    for label in np.unique(labels[random]):
        which = random & (labels == label)
        found.append(one_group(moments.part(which)))
        group[which] = len(found)
    return group, tuple(found)


def _of_one(values: np.ndarray) -> Drawn:
    x = values.astype(np.float64)
    n, mean, std = len(x), float(x.mean()), float(x.std(ddof=1 if len(x) > 1 else 0))
    if abs(mean) > 5 * std / math.sqrt(n) and n >= 8:
        return Drawn(float(np.float32(mean)), std, n)
    return Drawn(0.0, math.sqrt(float(np.square(x).mean())), n)


def _own(moments: Moments, middle: float, within: float) -> np.ndarray:
    """The places of values whose centers are not the common one."""
    n = len(moments.mean)
    # Of n normal values the largest is about sqrt(2 ln n) deviations off; a value that varies more errs by more.
    far = (math.sqrt(2 * math.log(n)) + FAR) / math.sqrt(moments.builds)
    off = moments.mean - moments.mean.dtype.type(middle)
    np.abs(off, out=off)
    places = np.flatnonzero(off > far * within)
    return places[off[places] > far * np.sqrt(moments.variance[places])]


def _snapped(center: float, within: float, n: int, builds: int) -> float:
    """The center, zero where that is within chance of it: by Student's t, as a normal one (Wallace 1959)."""
    free = n * (builds - 1)
    t = abs(center) / within * math.sqrt(builds * n) if within else math.inf
    z = (8 * free + 1) / (8 * free + 3) * math.sqrt(free * math.log1p(t * t / free)) if math.isfinite(t) else t
    return 0.0 if z < 4 or center == 0 else float(np.float32(center))


def _parts_differ(moments: Moments, random: np.ndarray, real: np.ndarray) -> bool:
    """Whether real and imaginary parts are drawn in different ways."""
    if not (random & real).any() or not (random & ~real).any():
        return False
    a, b = (one_group(moments.part(random & part)) for part in (real, ~real))
    if isinstance(a.center, np.ndarray) or isinstance(b.center, np.ndarray):
        return True
    n = int(random.sum())
    error = max(a.std, b.std) / math.sqrt(n)
    return not close(a.std, b.std, n // 2) or abs(a.center - b.center) > 5 * error


# Slices that spread differently


@dataclass(frozen=True)
class _Slices:
    """The slices of a tensor along an axis. means: the mean logarithms of their values' variances; error: the error of
    each mean by chance; good: which have enough values; score: how much of the spread of all they explain."""

    axis: int
    means: np.ndarray
    error: np.ndarray
    good: np.ndarray
    score: float

    @property
    def differ(self) -> bool:
        """Whether some differ by more than chance, and by enough to matter."""
        if self.good.sum() < 2:
            return False
        far = (math.sqrt(2 * math.log(len(self.means))) + FAR) * self.error
        off = np.abs(self.means - np.median(self.means[self.good]))
        return bool(np.any((off > np.maximum(far, APART))[self.good]))


def _labels(moments: Moments, random: np.ndarray, shape: tuple[int, ...], axes: Iterable[int]) -> np.ndarray | None:
    """A number below GROUPS for each value, (n,), the same for slices that spread alike; None if all do."""
    n = len(random)
    usable = [a for a in axes if shape[a] > 1 and n // shape[a] >= LEAST_SLICE]
    if not usable or not random.any():
        return None
    logs, mask = _logarithms(moments.variance, random)
    if logs is None:
        return None
    square = float(logs.square().sum(dtype=torch.float64))
    weights = None if mask is None else mask.view(shape)
    found = [s for a in usable if (s := _slices(logs.view(shape), weights, a, square)).differ]
    if not found:
        return None
    best = max(found, key=lambda s: s.score)
    if (labels := _clusters(best)) is None:
        return None
    wide = [-1 if a == best.axis else 1 for a in range(len(shape))]
    return np.broadcast_to(labels.reshape(wide), shape).reshape(-1)


def _logarithms(variance: np.ndarray, random: np.ndarray) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Logarithms of variances less their mean, zero where values are not random, and the mask where some are not.

    A logarithm has no heavy tail, whatever the distribution: its mean is known well from few values.
    """
    x = torch.from_numpy(variance)
    mask = None if random.all() else torch.from_numpy(np.ascontiguousarray(random))
    mean = float((x if mask is None else x[mask]).mean(dtype=torch.float64))
    if not mean > 0:
        return None, mask
    logs = x.clamp(min=max(mean * 1e-12, 1e-37)).log_()
    logs -= float((logs if mask is None else logs[mask]).mean(dtype=torch.float64))
    return (logs if mask is None else logs.mul_(mask)), mask


def _slices(logs: torch.Tensor, mask: torch.Tensor | None, axis: int, square: float) -> _Slices:
    others = [a for a in range(logs.ndim) if a != axis]
    size = logs.shape[axis]
    sums = logs.sum(others).double().numpy() if others else logs.double().numpy()
    counts = np.full(size, logs.numel() // size) if mask is None else mask.sum(others).numpy()
    good = counts >= LEAST_SLICE
    means = sums / np.maximum(counts, 1)
    between = float((counts * np.square(means)).sum())
    within = max(square - between, 0) / max(int(counts.sum()) - size, 1)
    return _Slices(axis, means, np.sqrt(within / np.maximum(counts, 1)), good, between)


def _clusters(slices: _Slices) -> np.ndarray | None:
    """A group for each slice, as few as hold slices that spread alike, (slices,) uint8; None for one."""
    x = slices.means[slices.good]
    chance = 2 * (math.sqrt(2 * math.log(len(x))) + 1) * float(np.median(slices.error[slices.good]))
    width = max(WIDTH, chance)
    for k in range(1, GROUPS + 1):
        centers, found = _k_means(x, k)
        if all(np.ptp(x[found == i]) <= width for i in np.unique(found)):
            break
    if k == 1:
        return None
    out = np.full(len(slices.means), np.abs(centers - np.median(x)).argmin(), np.uint8)
    out[slices.good] = found
    return out


def _k_means(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Centers of k groups of numbers, and the group of each."""
    centers = np.linspace(x.min(), x.max(), k) if k > 1 else np.array([x.mean()])
    for _ in range(20):
        found: np.ndarray = np.abs(x[:, None] - centers).argmin(1)
        sizes = np.bincount(found, minlength=k)
        centers = np.where(sizes > 0, np.bincount(found, x, k) / np.maximum(sizes, 1), centers)
    return centers, found

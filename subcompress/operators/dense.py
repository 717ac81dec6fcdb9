"""Dense Gaussian projection, a reference: not exact between devices, and it cannot be packed.

    P_ij ~ N(0, 1), independent

Li et al. 2018 (arXiv:1804.08838), "dense". A product costs O(D d). P is drawn again for every product, a piece of rows
at a time, unless it is small enough to be kept: memory is never of the order of D d.

This file also holds what the references share: their sizes and scale, and their draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.operators import philox
from subcompress.operators.base import Operator
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Tables = TypeVar("Tables")

KEPT = 100_000_000
"""The most numbers of P that are kept: 400 MB."""

PIECE = 1 << 20
"""Numbers of P that are drawn at a time, about."""

_QUADS = 1 << 12  # Philox in pieces of this many counters stays within a core's cache: three times as fast.


@dataclass(frozen=True)
class Reference(Operator):
    """A float operator to compare with. All are scaled alike: entries of P have a mean square of one, P^T P is D I on
    average. They are functions of (D, d, seed) alone, drawn from Philox; logarithms and products round as a device
    and its libraries do."""

    D: int
    d: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.d <= self.D:
            raise SubcompressError(
                f"D = {self.D} weights take 1 to {self.D} coordinates; got d = {self.d}: give another d"
            )

    @classmethod
    def sized(cls, D: int, d: int, seed: int) -> Self:
        return cls(D, d, seed)

    @property
    def row_norm(self) -> float:
        return math.sqrt(self.d)

    @cached_property
    def _kept(self) -> dict[tuple[torch.dtype, torch.device], Any]:
        return {}

    def _once(self, like: Tensor, make: Callable[[Tensor], Tables]) -> Tables:
        """Return what `make` returns for the dtype and the device of `like`, made once for each."""
        key = like.dtype, like.device
        if key not in self._kept:
            self._kept[key] = make(like)
        found: Tables = self._kept[key]
        return found


class DenseGaussian(Reference):
    """P is float32 whatever the dtype of its argument."""

    def rows(self, lo: int, hi: int) -> Tensor:
        """Return rows [lo, hi) of P, (hi - lo, d) float32; entry (i, j) is number i d + j of a stream of normals."""
        return torch.from_numpy(normals(self.seed, 0, lo * self.d, (hi - lo) * self.d)).view(hi - lo, self.d)

    @property
    def _step(self) -> int:
        """The number of rows of a piece."""
        return max(1, PIECE // self.d)

    def _drawn(self) -> Iterator[Tensor]:
        for lo in range(0, self.D, self._step):
            yield self.rows(lo, min(lo + self._step, self.D))

    @cached_property
    def _cache(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}

    def _pieces(self, device: torch.device) -> Iterable[Tensor]:
        """Yield P in pieces of `_step` rows, on a device."""
        if self.D * self.d > KEPT:
            return (piece.to(device) for piece in self._drawn())
        if device not in self._cache:
            self._cache[device] = tuple(piece.to(device) for piece in self._drawn())
        return self._cache[device]

    def matvec(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return torch.cat([piece.to(z.dtype) @ z for piece in self._pieces(z.device)])

    def rmatvec(self, g: Tensor) -> Tensor:
        out = g.new_zeros(self.d)
        with torch.autocast(g.device.type, enabled=False):
            for piece, part in zip(self._pieces(g.device), g.split(self._step), strict=True):
                out += part @ piece.to(g.dtype)
        return out


def words(seed: int, stream: int, start: int, count: int) -> np.ndarray:
    """Return words [start, start + count) of a stream, (count,) int64 below 2^32."""
    first, last = start // 4, -(-(start + count) // 4)
    flat: np.ndarray = philox.words(seed, stream, np.arange(first, last, dtype=np.int64)).reshape(-1)
    return flat[start - 4 * first :][:count]


def permutation(seed: int, stream: int, count: int) -> np.ndarray:
    """Return a random permutation of 0 .. count - 1, (count,) int64."""
    return np.argsort(words(seed, stream, 0, count), kind="stable")


def normals(seed: int, stream: int, start: int, count: int) -> np.ndarray:
    """Standard normals [start, start + count) of a stream, (count,) float32: four of every four words.

    Box, Muller, "A note on the generation of random normal deviates", 1958.
    """
    first, last = start // 4, -(-(start + count) // 4)
    out = np.empty((last - first, 2, 2), np.float32)
    for lo in range(first, last, _QUADS):
        w = philox.words(seed, stream, np.arange(lo, min(lo + _QUADS, last), dtype=np.int64))
        u = (w.astype(np.float32) + np.float32(0.5)) * np.float32(2**-32)  # never zero
        radius, angle = np.sqrt(-2 * np.log(u[:, :2])), np.float32(2 * math.pi) * u[:, 2:]
        piece = out[lo - first : lo - first + len(w)]
        np.multiply(radius, np.cos(angle), out=piece[:, 0])
        np.multiply(radius, np.sin(angle), out=piece[:, 1])
    return out.reshape(-1)[start - 4 * first :][:count]

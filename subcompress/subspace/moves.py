"""How far each tensor moves when the network is trained directly, and the scales of the subspace that follow.

theta = start + scale * P z. A tensor that must move far for the loss to fall needs a large scale, whatever the size of
its start. Examples are spectral weights, layer scales and biases that start near zero, and a last layer that starts
small. A few steps of Adam on all weights show how far each tensor moves (`measuring`). The scale of a piece is the root
mean square of its change, times a factor that depends on D / d and is the same for all pieces (benchmarks/moves.py
compares rules).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subcompress.errors import SubcompressError, shown
from subcompress.subspace.starts import Starts, moving_weights

USUAL = 30.0
"""Number of weights per coordinate, D / d, at which the scale of a piece equals the root mean square of its change. A
step of Adam moves each coordinate by the same amount. The more weights a coordinate moves, the smaller the part of the
move that lowers the loss."""

POWER = 1 / 8
"""Exponent with which scales grow with the number of weights per coordinate. The results for exponents of 0 and 1/4
differ from it by no more than the noise (benchmarks/results/moves.md)."""

FLOAT_POWER = 1 / 2
"""The same for coordinates that are never rounded: d_int90 of LeNet fell from 161 to 137, of the MLP from 364 to 336
(benchmarks/dimension.py)."""

MOST_FLOAT = 2_000.0
"""Weights per coordinate up to which FLOAT_POWER was measured. With more, scales grow no further: ten times the usual
change of a weight in a step would only make the training diverge."""

SMOOTH = 1.45
"""Smoothness above which coordinates use the columns of lowest sequency."""

SMALLEST = 1e-6
"""Changes below this share of the largest change count as this share."""


@dataclass(frozen=True)
class Moves:
    """How far the values of each parameter moved in direct training.

    sizes: for each parameter, the root mean square change of each of its pieces that move, in order. still: for each
    tensor, a mask (n,) of the values that no coordinate acts on: constants that no training example moves, and all
    values of a tensor that the forward pass does not read. unread: the names of these unread tensors. rate: the
    learning rate of Adam. steps: the number of training steps, over all trials. seconds: how long they took.
    smoothness: see `measuring.smoothness`; None if nothing was measured.
    """

    sizes: Mapping[str, tuple[float, ...]]
    still: Mapping[str, np.ndarray] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    rate: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    smoothness: float | None = None

    @property
    def operator(self) -> str:
        """The exact operator that suits the moves: `hadamard` (low sequency) if they are smooth, else `scattered`."""
        return "hadamard" if self.smoothness is None or self.smoothness > SMOOTH else "scattered"

    def scales(self, starts: Starts, d: int, *, rounded: bool = True) -> dict[str, tuple[float, ...]]:
        """The scale of each piece that coordinates act on, for d coordinates.

        rounded: whether the coordinates are rounded to integers.
        """
        largest = max((x for sizes in self.sizes.values() for x in sizes), default=0.0)
        if not largest:
            return {}
        known = starts.of(self.still)
        if other := sorted(self.sizes.keys() - known.keys()):
            raise SubcompressError(
                f"the moves were measured on another network, which has {other[0]}: measure them again on this one"
            )
        share = moving_weights(starts.layout, known) / d
        factor = (share / USUAL) ** POWER if rounded else (min(share, MOST_FLOAT) / USUAL) ** FLOAT_POWER
        return {
            name: tuple(factor * max(x, SMALLEST * largest) for x in sizes)
            for name, sizes in self.sizes.items()
            if known[name].moves
        }

    def check(self, starts: Starts) -> None:
        """Raise SubcompressError unless these moves belong to the network with these starts."""
        known = starts.of(self.still)
        pieces = {n: sum(not p.fixed for p in s.pieces) if s.runs or s.rank else 1 for n, s in known.items() if s.moves}
        counts = {name: len(sizes) for name, sizes in self.sizes.items()}
        if self.sizes and counts != pieces:
            name = next(n for n in {**pieces, **counts} if pieces.get(n) != counts.get(n))
            raise SubcompressError(
                f"sizes: {shown(name)}: expected {pieces.get(name, 0)} numbers, got {counts.get(name, 0)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a run folder."""
        return {
            "sizes": {name: list(sizes) for name, sizes in self.sizes.items()},
            "still": {name: [len(m), _packed(m)] for name, m in self.still.items()},
            "unread": list(self.unread),
            "rate": self.rate,
            "steps": self.steps,
            "seconds": self.seconds,
            "smoothness": self.smoothness,
        }

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Moves:
        """What `to_json` gave. Raises ValueError for a mask that is not one."""
        return cls(
            {name: tuple(sizes) for name, sizes in held["sizes"].items()},
            {name: _unpacked(n, text) for name, (n, text) in held["still"].items()},
            tuple(held["unread"]),
            held["rate"],
            held["steps"],
            held["seconds"],
            held.get("smoothness"),
        )


def _packed(mask: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes(), 9)).decode()


def _unpacked(n: int, text: str) -> np.ndarray:
    size = -(-n // 8)
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (zlib.error, ValueError, OverflowError) as e:
        raise ValueError(f"not a mask: {e}") from e
    if len(packed) != size:
        raise ValueError(f"a mask of {n} values is {size} bytes, not {len(packed)}")
    return np.unpackbits(np.frombuffer(packed, np.uint8))[:n].astype(bool)


__all__ = ["Moves"]

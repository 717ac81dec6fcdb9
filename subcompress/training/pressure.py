"""A price on the bits of the coordinates that a file has no room for, so that rounding ends within it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

STRENGTH = 4.0
"""The share by which the loss grows for each share by which the coordinates exceed their room."""


class Coded(Protocol):
    """Coordinates that can be rounded: a Subspace."""

    def coded_bits(self) -> Tensor | None: ...
    def coded_bytes(self) -> int: ...


class Pressure:
    """room: bytes that the coordinates may take. Nothing is priced below it, and nothing before rounding begins."""

    def __init__(self, coordinates: Coded, room: int) -> None:
        self.coordinates, self.room, self.beyond = coordinates, max(room, 1), 0.0

    def look(self) -> None:
        """Learn how much more the coder writes than the frequencies of the coordinates tell. To be called when rounding
        begins and at each epoch after it: a training that goes on from there finds the same."""
        bits = self.coordinates.coded_bits()
        self.beyond = 0.0 if bits is None else 8 * self.coordinates.coded_bytes() - float(bits.detach())

    def of(self, loss: Tensor) -> Tensor | None:
        """What to add to a loss, (); None before rounding begins."""
        bits = self.coordinates.coded_bits()
        if bits is None:
            return None
        excess = (bits + self.beyond) / (8 * self.room) - 1
        return STRENGTH * loss.detach().abs() * excess.clamp(min=0)

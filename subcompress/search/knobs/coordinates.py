"""The number of coordinates, d."""

from __future__ import annotations

import math
from dataclasses import dataclass

from subcompress.search.knobs.knob import Knob, Made
from subcompress.search.trials import Trial


def first_d(D: int) -> int:
    """Where a search begins: near sqrt(D), of the order of what Li et al. 2018 found for small networks."""
    return min(D, max(8, round(math.sqrt(D))))


@dataclass(frozen=True)
class Coordinates(Knob):
    """d, of a network of D weights. given: the only d that is allowed, None for any."""

    D: int
    given: int | None = None

    name = "d"
    slope = (-0.6, 0.2)  # benchmarks/dimension.py shows -0.4 to -1.1
    size = True
    spread = "d_spread"

    @property
    def bounds(self) -> tuple[float, float]:
        return (1.0, float(self.D)) if self.given is None else (float(self.given), float(self.given))

    @property
    def first(self) -> float:
        return float(first_d(self.D) if self.given is None else self.given)

    @property
    def whole(self) -> float | None:
        return float(self.D)

    def value(self, made: Made) -> float:
        return float(made.d)

    def nearest(self, turn: float) -> float:
        return float(self.within(max(2, round(turn))))

    def trial(
        self, turn: float, seed: int, *, short: bool = False, limit: int | None = None, room: int | None = None
    ) -> Trial:
        return Trial(int(turn), seed, short, limit=limit, room=room)

    def words(self, made: Made) -> str:
        return f"d = {made.d}"


__all__ = ["Coordinates", "first_d"]

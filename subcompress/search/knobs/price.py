"""The price of a bit, in d coordinates that stay as many: a dearer bit makes a smaller file of lower accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from subcompress.search.knobs.knob import Knob, Made, significant
from subcompress.search.trials import Trial

LEAST, MOST = 1e-7, 1e-1
"""Prices in nats a bit."""

FIRST = 1e-4
"""Where a search begins."""


@dataclass(frozen=True)
class Price(Knob):
    """`--rate`, in d coordinates, of which a network may have as many as weights."""

    d: int

    name = "price"
    rises = False
    slope = (-0.3, 0.2)

    @property
    def bounds(self) -> tuple[float, float]:
        return LEAST, MOST

    @property
    def first(self) -> float:
        return 1 / FIRST

    def value(self, made: Made) -> float:
        assert made.rate is not None
        return made.rate

    def nearest(self, turn: float) -> float:
        return 1 / significant(1 / self.within(turn))

    def trial(
        self, turn: float, seed: int, *, short: bool = False, limit: int | None = None, room: int | None = None
    ) -> Trial:
        return Trial(self.d, seed, short, limit=limit, room=room, rate=significant(1 / turn))

    def words(self, made: Made) -> str:
        return f"price {self.value(made):g} at d = {made.d}"


__all__ = ["Price"]

"""What a knob is to a search."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from subcompress.search.trials import Trial
from subcompress.training.probe import Probe

Made = Trial | Probe
"""Objects that have a value of the knob: a trial, or its training."""


class Knob(ABC):
    """One setting of a training that a search varies, all others being equal.

    Searches speak of how far a knob is turned: a positive number that accuracy and bytes rise with. It is the value, or
    1 / value where accuracy falls as the value rises. Near a target, log(error) is close to linear in its logarithm.

    Attributes:
        name: What people call it.
        rises: Whether accuracy rises with the value.
        slope: What log(error) gains with each unit of log(turn), and its standard error, before any training.
        size: Whether the bytes of the coordinates are proportional to the turn.
        spread: The field of a `Fit` that tells how its value varies between seeds, None if there is none.
    """

    name: ClassVar[str]
    rises: ClassVar[bool] = True
    slope: ClassVar[tuple[float, float]]
    size: ClassVar[bool] = False
    spread: ClassVar[str | None] = None

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value."""

    @property
    @abstractmethod
    def first(self) -> float:
        """The turn that a search begins with."""

    @abstractmethod
    def value(self, made: Made) -> float:
        """The value that a trial or a training has."""

    @abstractmethod
    def nearest(self, turn: float) -> float:
        """The nearest turn that a training can have."""

    @abstractmethod
    def trial(
        self, turn: float, seed: int, *, short: bool = False, limit: int | None = None, room: int | None = None
    ) -> Trial:
        """A training with that turn, see `Trial`."""

    @property
    def whole(self) -> float | None:
        """The turn that comes to training the network directly, None if none does."""
        return None

    def cost(self, turn: float) -> float:
        """What a whole training with that turn costs, in trainings of the first turn."""
        return 1.0

    def words(self, made: Made) -> str:
        """The value for people, such as `d = 300`."""
        return f"{self.name} = {self.value(made):g}"

    def turn(self, made: Made) -> float:
        """How far a trial or a training is turned."""
        return self.value(made) if self.rises else 1 / self.value(made)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest turn."""
        low, high = self.bounds
        return (low, high) if self.rises else (1 / high, 1 / low)

    def within(self, turn: float) -> float:
        """The turn, brought within its range."""
        low, high = self.range
        return min(max(turn, low), high)


def significant(value: float, digits: int = 3) -> float:
    """The value rounded to a fixed number of digits, so that equal values have equal names."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else value


__all__ = ["Knob", "Made", "significant"]

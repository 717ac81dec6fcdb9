"""What a search may still spend: trainings, and minutes of them."""

from __future__ import annotations

import math

from subcompress.search.goal import SearchGoal
from subcompress.training.probe import Probe


class Spending:
    """What a search may still spend: trainings, and minutes of them.

    epochs: those of a whole training; workers: how many share the minutes.
    """

    def __init__(self, epochs: int, goal: SearchGoal) -> None:
        self.epochs, self.goal, self.workers = epochs, goal, 1
        self.spent_fits, self.spent_seconds = 0.0, 0.0

    def pay(self, probe: Probe) -> None:
        """Count a training that has ended."""
        self.spent_fits += probe.epochs / self.epochs
        self.spent_seconds += probe.seconds

    def room(self, running: int = 0) -> float:
        """The number of full trainings that may still start, beside those that are running. If minutes are limited,
        only those count that would end in time, judging by the finished ones."""
        fits = self.goal.max_fits - self.spent_fits - running
        if math.isinf(self.goal.max_minutes) or not self.spent_fits:
            return fits
        each = max(self.spent_seconds, 1e-9) / self.spent_fits
        left = 60 * self.goal.max_minutes * self.workers - self.spent_seconds
        return min(fits, left / each - running)


__all__ = ["Spending"]

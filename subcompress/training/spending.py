"""What a search may still spend: trainings, and minutes of them."""

from __future__ import annotations

import math

from subcompress.training.fitter import Fitter
from subcompress.training.goal import Limits, SearchGoal
from subcompress.training.probe import Probe


class Spending:
    """What a search may still spend: trainings, and minutes of them."""

    def __init__(self, fitter: Fitter, goal: SearchGoal) -> None:
        self.epochs, self.goal = fitter.settings.epochs, goal
        self.spent_fits, self.spent_seconds, self.trainings = 0.0, 0.0, 0

    @property
    def limits(self) -> Limits:
        """Those in force now."""
        return self.goal.limits(self.trainings)

    def pay(self, probe: Probe) -> None:
        """A training has ended."""
        self.spent_fits += probe.epochs / self.epochs
        self.spent_seconds += probe.seconds
        self.trainings += 1

    def room(self) -> float:
        """Trainings that are left; of time, as many as would end before it is up: the first one tells how long they
        take."""
        limits = self.limits
        fits = limits.max_fits - self.spent_fits
        if math.isinf(limits.max_minutes) or not self.spent_fits:
            return fits
        left = 60 * limits.max_minutes - self.spent_seconds
        return min(fits, left * self.spent_fits / max(self.spent_seconds, 1e-9))

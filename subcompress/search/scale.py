"""The scale of a search's lines: the logarithm of the error, or a substitute for metrics that have no error.

Each scale falls as a metric gets better, and gives every metric of its range back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from subcompress.training.tasks import Task


class Scale(Protocol):
    """From a metric to log(error), and back."""

    def log_error(self, value: float) -> float:
        """What log(error) is, or stands for it, at a finite value of the metric."""

    def metric(self, log_error: float) -> float:
        """The value of the metric at that `log_error`."""


class Shares:
    """A metric that grows towards 1, such as an accuracy: its error is 1 - value."""

    def log_error(self, value: float) -> float:
        return math.log(max(1 - value, 1e-6))

    def metric(self, log_error: float) -> float:
        return 1 - math.exp(log_error)


class Errors:
    """A positive metric that is minimized: its error is the value itself."""

    def log_error(self, value: float) -> float:
        return math.log(max(value, 1e-12))

    def metric(self, log_error: float) -> float:
        return math.exp(log_error)


@dataclass(frozen=True)
class Linear:
    """A metric without a best value, such as a reward or a log likelihood: its distance from the target in units, of
    which a search expects as many for each unit of log(turn) as of a logarithm. step: a unit, negative where more is
    better."""

    target: float
    step: float

    def log_error(self, value: float) -> float:
        return (value - self.target) / self.step

    def metric(self, log_error: float) -> float:
        return self.target + log_error * self.step


def scale_of(task: Task, target: float, values: Iterable[float]) -> Scale | None:
    """The scale of a metric with such values, one for all of them; None for one that needs a `Linear`."""
    if task.metric_name.endswith("accuracy"):
        return Shares()
    if task.minimise:
        return Errors() if target > 0 and min(values, default=0.0) >= 0 else None
    return Shares() if target < 1 and max(values, default=0.0) <= 1 else None


__all__ = ["Errors", "Linear", "Scale", "Shares", "scale_of"]

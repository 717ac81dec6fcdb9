"""The error as a function of d, estimated from the trainings of a search.

Near a target the error is close to a power of d, and the bytes of the coordinates are close to proportional to it:

    log(error) = a + slope * log(d) + noise

Each training is a sample. While there are few samples, the usual slope counts as one more. A short training lies above
the line by a lag that all short trainings share: the amount by which log(error) would still fall in the epochs that are
left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

import numpy as np

from subcompress.training.probe import Probe
from subcompress.training.tasks import Task

SLOPE, SLOPE_ERROR = -0.6, 0.2
"""The usual slope of log(error) over log(d), and its standard deviation: benchmarks/dimension.py shows -0.4 to -1.1."""

NOISE = 0.10
"""Standard deviation of log(error) between seeds, until more is known, at an accuracy of 0.9 or more:
benchmarks/search.py shows 0.03 to 0.11."""


def expected_noise(accuracy: float) -> float:
    """`NOISE` at an accuracy. Accuracies vary between seeds like shares of examples, sqrt(e (1 - e)), so that log(e)
    varies like sqrt((1 - e) / e): less where the error e is large."""
    return NOISE * min(1.0, math.sqrt(accuracy / (1 - accuracy)) / 3) if 0 < accuracy < 1 else NOISE


LAG_STEPS, LAG_ERROR = 150.0, 0.15
"""A training of n steps is expected to lie LAG_STEPS / n above where endless training would end, and LAG_ERROR is the
standard error of that: measured on networks of 4,426 to 199,210 weights by benchmarks/predict.py."""


def expected_lag(short: int, whole: int) -> float:
    """How far log(error) of a training with this many steps is expected to lie above that of a full one."""
    return LAG_STEPS * (1 / short - 1 / whole)


SHORT_DOUBT = 1.2
"""The noise of a short training, divided by that of a full one."""

ANCHOR_NOISE = 0.5
"""Standard deviation of log(error) of direct training when it counts as a training with d = D. It is large because the
true curve is bent between the usual d and D: a straight line to D lies above the trainings in between."""


class Curve:
    """The trainings so far, and the line through them.

    baseline: the metric of direct training, if it is known. It gives the slope when only one d was trained. lag: see
    `expected_lag`.
    """

    def __init__(
        self, task: Task, target: float, seeds: int, D: int, baseline: float | None = None, lag: float = 0.0
    ) -> None:
        self.task, self.target, self.seeds, self.D = task, target, seeds, D
        self.baseline = baseline
        self.lag = lag
        self.probes: list[Probe] = []

    def slope_is_measured(self) -> bool:
        """Whether the trainings determine the slope. Otherwise only its usual value is known."""
        return self.baseline is not None or len({p.d for p in self.probes}) > 1

    def short_ones_mislead(self) -> bool:
        """Whether some short training is more than three standard errors away from the value that the nearest full
        training predicts for it, for example because the network learns nothing at first. Short trainings are then
        ignored."""
        pairs = [(short, whole) for short in self.probes for whole in self.probes if short.short and _has_ended(whole)]
        if not pairs:
            return False
        short, whole = min(pairs, key=lambda pair: abs(math.log(pair[0].d / pair[1].d)))
        step = math.log(short.d / whole.d)
        expected = self.log_error(whole.value) + SLOPE * step + self.lag
        error = math.sqrt(LAG_ERROR**2 + (SLOPE_ERROR * step) ** 2 + 2 * self.noise() ** 2)
        return abs(self.log_error(short.value) - expected) > 3 * error

    def mean(self, d: int) -> float:
        """The mean metric at d over its seeds."""
        return statistics.fmean(p.value for p in self.probes if p.at(d))

    def gap(self, value: float) -> float:
        """The log(error) of a metric minus that of the target: negative if the target is met."""
        return self.log_error(value) - self.log_error(self.target)

    def noise(self) -> float:
        """Standard deviation of log(error) between seeds: measured at every d that has several seeds, and mixed with
        the usual value while these are few."""
        usual = expected_noise(self.target) if self.task.metric_name.endswith("accuracy") else NOISE
        squares, n = 3 * usual**2, 3
        for d in {p.d for p in self.probes}:
            y = [self.log_error(p.value) for p in self.probes if p.at(d) and not p.stopped]
            if len(y) > 1:
                squares, n = squares + statistics.variance(y) * (len(y) - 1), n + len(y) - 1
        return math.sqrt(squares / n)

    def crossing(self) -> tuple[float, float]:
        """The d at which the line meets the target, and the standard error of its logarithm, with that of the mean over
        the seeds."""
        (a, b, _), covariance, center = self._line()
        at = (self.log_error(self.target) - a) / b
        row = np.array([1.0, at, 0.0])
        variance = float(row @ covariance @ row) + self.noise() ** 2 / self.seeds
        d = math.exp(min(max(at + center, 0.0), math.log(self.D)))
        return d, math.sqrt(variance) / -b

    def expected(self, d: int, short: bool = False) -> float:
        """The metric on the line at d. short: whether it is that of a short training."""
        (a, b, lag), _, center = self._line()
        return self._metric(float(a + b * (math.log(d) - center) + lag * short))

    @property
    def slope(self) -> float:
        """The slope of log(error) over log(d)."""
        return float(self._line()[0][1])

    def _line(self) -> tuple[np.ndarray, np.ndarray, float]:
        """The least-squares fit: (a, slope, lag), their covariance, and the origin of log(d)."""
        mislead = self.short_ones_mislead()
        probes = [p for p in self.probes if p.whole or not mislead]
        x = np.log([p.d for p in probes])
        y = np.array([self.log_error(p.value) for p in probes])
        short = np.array([float(not p.whole) for p in probes])
        far = (y - self.lag * short - self.log_error(self.target)) / 0.7  # near the target the power law holds best
        doubt = np.array([2.0 if p.stopped else 1.0 if p.whole else SHORT_DOUBT for p in probes])
        noise = self.noise() * doubt * np.exp(0.25 * far**2).clip(1, 30)
        center = float(np.average(x, weights=1 / noise**2))
        if self.baseline is not None:
            x, y = np.append(x, math.log(self.D)), np.append(y, self.log_error(self.baseline))
            noise, short = np.append(noise, ANCHOR_NOISE), np.append(short, 0.0)
        A = np.stack([1 / noise, (x - center) / noise, short / noise], 1)
        prior = [[0.0, 1 / SLOPE_ERROR, 0.0], [0.0, 0.0, 1 / LAG_ERROR]]
        A = np.concatenate([A, prior])
        wanted = np.concatenate([y / noise, [SLOPE / SLOPE_ERROR, self.lag / LAG_ERROR]])
        solution, *_ = np.linalg.lstsq(A, wanted, rcond=None)
        solution[1] = min(solution[1], -0.15)
        return solution, np.linalg.inv(A.T @ A), center

    def log_error(self, value: float) -> float:
        """The logarithm of the error: of 1 - value for a metric that grows towards 1, of the value itself if it is an
        error."""
        if not math.isfinite(value):
            return 10.0
        if self.task.minimise:
            # An error that may be negative (a log likelihood) is taken as it is, in units of the first.
            values = [abs(p.value) for p in self.probes if p.value != 0] or [1.0]
            positive = value > 0 and self.target > 0
            return math.log(max(value, 1e-12)) if positive else value / values[0]
        if self.task.metric_name.endswith("accuracy") or (value <= 1 and self.target <= 1):
            return math.log(max(1 - value, 1e-6))
        return -value / max(abs(self.target), 1e-12)

    def _metric(self, log_error: float) -> float:
        """The metric whose `log_error` this is."""
        if self.task.minimise:
            values = [abs(p.value) for p in self.probes if p.value != 0] or [1.0]
            return math.exp(log_error) if self.target > 0 else log_error * values[0]
        if self.task.metric_name.endswith("accuracy") or self.target <= 1:
            return 1 - math.exp(log_error)
        return -log_error * max(abs(self.target), 1e-12)


def _has_ended(probe: Probe) -> bool:
    return probe.whole and not probe.stopped


def frontier(probes: Iterable[Probe], minimise: bool) -> tuple[Probe, ...]:
    """The trainings for which no file is both smaller and at least as good, by bytes."""
    sign = -1 if minimise else 1
    found: list[Probe] = []
    for p in sorted((p for p in probes if p.bytes), key=lambda p: (p.bytes, -sign * p.value)):
        if not found or sign * p.value > sign * found[-1].value:
            found.append(p)
    return tuple(found)


__all__ = ["Curve", "frontier"]

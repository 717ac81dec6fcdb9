"""Error against how far a knob is turned, as the trainings of a search have sampled it.

Near a target the error (see `Scale`) is close to a power of the turn (of d, say; see `Knob`):

    log(error) = a + slope * log(turn) + noise

Each training is a sample. While there are few samples, the usual slope counts as one more. A short training lies above
the line by a lag that all short trainings share: the amount by which log(error) would still fall in the epochs that are
left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import copy

import numpy as np

from subcompress.search.knobs import Coordinates, Knob
from subcompress.search.noise import NOISE, USUAL, Belief, expected_noise, spread
from subcompress.search.scale import Linear, Scale, scale_of
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import Task

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


TELLING = 1.3
"""The factor in the turn between trainings that tell how much a metric without a best value gains."""

USUAL_UNITS = 50.0
"""How many times smaller or larger than the metric itself its unit may be."""

Line = tuple[np.ndarray, np.ndarray, float]
"""(a, slope, lag), their covariance, and where log(turn) is counted from."""


class Curve:
    """The trainings so far, and the line through them. D: its weights; baseline: the metric of the network trained
    directly, where it is known: it tells the slope when only one turn was trained; lag: see `expected_lag`; knob: what
    is varied, d by default; belief: on the noise between seeds."""

    def __init__(
        self,
        task: Task,
        target: float,
        seeds: int,
        D: int,
        baseline: float | None = None,
        lag: float = 0.0,
        *,
        knob: Knob | None = None,
        belief: Belief = USUAL,
    ) -> None:
        self.task, self.target, self.seeds = task, target, seeds
        self.knob = knob or Coordinates(D)
        self.baseline, self.lag, self.belief = baseline, lag, belief
        self.probes: list[Probe] = []
        self._drawn: tuple[list[Probe], Line] | None = None

    def through(self, probes: Iterable[Probe]) -> Curve:
        """The same line through other trainings."""
        found = copy(self)
        found.probes = list(probes)
        return found

    def slope_is_measured(self) -> bool:
        """Whether the trainings tell the slope, or only its usual value is known."""
        anchored = self.baseline is not None and self.knob.whole is not None
        return anchored or len({self.knob.turn(p) for p in self.probes}) > 1

    def short_ones_mislead(self) -> bool:
        """Whether some short training is more than three standard errors away from the value that the nearest full
        training predicts for it, for example because the network learns nothing at first. Short trainings are then
        ignored."""
        pairs = [(short, whole) for short in self.probes for whole in self.probes if short.short and _has_ended(whole)]
        if not pairs:
            return False
        short, whole = min(pairs, key=lambda pair: abs(self.step(*pair)))
        step, (slope, error) = self.step(short, whole), self.knob.slope
        expected = self.log_error(whole.value) + slope * step + self.lag
        error = math.sqrt(LAG_ERROR**2 + (error * step) ** 2 + 2 * self.noise() ** 2)
        return abs(self.log_error(short.value) - expected) > 3 * error

    def step(self, a: Probe, b: Probe) -> float:
        """How much further a is turned than b, in logarithms."""
        return math.log(self.knob.turn(a) / self.knob.turn(b))

    def at(self, turn: float) -> list[Probe]:
        """The whole trainings of that turn."""
        return [p for p in self.probes if p.whole and self.knob.turn(p) == turn]

    def gap(self, value: float) -> float:
        """The log(error) of a metric minus that of the target: negative if the target is met."""
        return self.log_error(value) - self.log_error(self.target)

    def noise(self) -> float:
        """Standard deviation of log(error) between seeds: as seen among neighbors, and as believed where few are."""
        usual = expected_noise(self.target) if self.task.metric_name.endswith("accuracy") else NOISE
        trained = [(math.log(self.knob.turn(p)), self.log_error(p.value)) for p in self.probes if _has_ended(p)]
        squares, n = spread(trained, self.knob.slope[0])
        believed = (usual * self.belief.factor) ** 2 * self.belief.n
        return math.sqrt((believed + squares) / (self.belief.n + n))

    def crossing(self) -> tuple[float, float]:
        """The turn at which the line meets the target, and the standard error of its logarithm, with that of the mean
        over the seeds."""
        (a, b, _), covariance, center = self._line()
        at = (self.log_error(self.target) - a) / b
        row = np.array([1.0, at, 0.0])
        variance = float(row @ covariance @ row) + self.noise() ** 2 / self.seeds
        low, high = self.knob.range
        turn = math.exp(min(max(at + center, math.log(low)), math.log(high)))
        return turn, math.sqrt(variance) / -b

    def expected(self, turn: float, short: bool = False) -> float:
        """The metric on the line at that turn. short: whether it is that of a short training."""
        (a, b, lag), _, center = self._line()
        return self.metric(float(a + b * (math.log(turn) - center) + lag * short))

    @property
    def slope(self) -> float:
        """What log(error) gains with each unit of log(turn)."""
        return float(self._line()[0][1])

    def _line(self) -> Line:
        """The line through the trainings, drawn once for each set of them."""
        if self._drawn is None or self._drawn[0] != self.probes:
            self._drawn = list(self.probes), self._draw()
        return self._drawn[1]

    def _draw(self) -> Line:
        """Draw the line: least squares."""
        mislead = self.short_ones_mislead()
        probes = [p for p in self.probes if p.whole or not mislead]
        x = np.log([self.knob.turn(p) for p in probes])
        y = np.array([self.log_error(p.value) for p in probes])
        short = np.array([float(not p.whole) for p in probes])
        far = (y - self.lag * short - self.log_error(self.target)) / 0.7  # near the target the power law holds best
        doubt = np.array([2.0 if p.stopped else 1.0 if p.whole else SHORT_DOUBT for p in probes])
        noise = self.noise() * doubt * np.exp(0.25 * far.clip(-4, 4) ** 2).clip(1, 30)
        center = float(np.average(x, weights=1 / noise**2))
        if self.baseline is not None and self.knob.whole is not None:
            x, y = np.append(x, math.log(self.knob.whole)), np.append(y, self.log_error(self.baseline))
            noise, short = np.append(noise, ANCHOR_NOISE), np.append(short, 0.0)
        A = np.stack([1 / noise, (x - center) / noise, short / noise], 1)
        slope, error = self.knob.slope
        prior = [[0.0, 1 / error, 0.0], [0.0, 0.0, 1 / LAG_ERROR]]
        A = np.concatenate([A, prior])
        wanted = np.concatenate([y / noise, [slope / error, self.lag / LAG_ERROR]])
        solution, *_ = np.linalg.lstsq(A, wanted, rcond=None)
        solution[1] = min(solution[1], -0.15)
        return solution, np.linalg.inv(A.T @ A), center

    def log_error(self, value: float) -> float:
        """The logarithm of the error, or what stands for it, see `Scale`."""
        return self._scale().log_error(value) if math.isfinite(value) else 10.0

    def metric(self, log_error: float) -> float:
        """The metric of that `log_error`."""
        return self._scale().metric(log_error)

    def _scale(self) -> Scale:
        """One for the target, the baseline and all trainings."""
        known = [*(p.value for p in self.probes), *([] if self.baseline is None else [self.baseline])]
        values = [value for value in known if math.isfinite(value)]
        return scale_of(self.task, self.target, values) or Linear(self.target, self._unit(values))

    def _unit(self, values: Sequence[float]) -> float:
        """The unit of a `Linear` scale, such that the trainings gain as much of it as usual. Until they tell, it is of
        the size of the target or of the first metric, and later at most USUAL_UNITS times smaller or larger."""
        sign = 1.0 if self.task.minimise else -1.0
        usual = max(abs(value) for value in (self.target, *values[:1])) or 1.0
        for counts in (_has_ended, lambda p: p.short):
            known = [p for p in self.probes if counts(p) and math.isfinite(p.value) and p.note != DIED]
            x = np.log([self.knob.turn(p) for p in known])
            if len(known) > 1 and np.ptp(x) > math.log(TELLING):
                gained = float(np.polyfit(x, [sign * p.value for p in known], 1)[0]) / self.knob.slope[0]
                return sign * min(max(gained, usual / USUAL_UNITS), usual * USUAL_UNITS)
        return sign * usual


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

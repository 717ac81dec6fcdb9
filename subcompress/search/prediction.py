"""A first guess of the d that meets a target, from a few short trainings (`Settings.short_epochs`).

Near a target, log(error) of short trainings runs nearly parallel to that of full ones (`Curve`). Short trainings
therefore show approximately which d meets the target, and together cost less than one full training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.search.curve import Curve, expected_lag
from subcompress.search.engine import Search, seeds_from
from subcompress.search.goal import SearchGoal
from subcompress.search.knobs import Coordinates, first_d
from subcompress.search.spending import Spending
from subcompress.search.trials import Trial
from subcompress.training.dimension import of_baseline
from subcompress.training.fitter import Fitter
from subcompress.training.probe import DIED, Probe

SHARE = 1 / 3
"""The largest part of a full training that a short one may take. With fewer than three epochs, there are no short
trainings."""

MAX_SHORT = 9
"""The most short trainings."""

NEAR = 1.5
"""The factor in d around the predicted crossing within which two short trainings are enough."""

APART = 1.3
"""The factor in d between two short trainings that determine the slope."""

FARTHEST = 32.0
"""Short trainings predict at most this factor in d beyond the largest and the smallest of them."""


def short_ones_are_worth(fitter: Fitter) -> bool:
    """Whether short trainings are worth their time."""
    return fitter.short_epochs <= SHARE * fitter.settings.epochs


def next_short_trial(curve: Curve, seeds: Sequence[int]) -> Trial | None:
    """The short training to run next, each with another of the seeds; None once enough lie around the crossing."""
    knob = curve.knob
    turns = sorted({knob.turn(p) for p in curve.probes if p.short})
    if not turns:
        return knob.trial(knob.nearest(knob.first), seeds[0], short=True)
    if len(turns) >= MAX_SHORT:
        return None
    crossing = min(max(curve.crossing()[0], turns[0] / FARTHEST), turns[-1] * FARTHEST)
    crossing = min(max(crossing, knob.nearest(knob.range[0])), knob.range[1])
    near = [turn for turn in turns if crossing / NEAR <= turn <= crossing * NEAR]
    if len(near) >= 2:
        return None
    if any(crossing / APART < turn < crossing * APART for turn in near):  # one is there: the crossing's other side
        crossing *= 1 / APART if near[0] > crossing else APART
    turn = knob.nearest(crossing)
    return None if turn in turns else knob.trial(turn, seeds[len(turns) % len(seeds)], short=True)


@dataclass(frozen=True)
class PredictedDimension:
    """The d at which a network is expected to meet a threshold.

    Attributes:
        d: The prediction.
        low: The lower end of its interval of two standard errors.
        high: The upper end.
        D: Number of weights that can be trained.
        threshold: The value of the metric to meet.
        metric: Its name.
        baseline: The metric of the network trained directly, if the threshold is a share of it, otherwise None.
        full_fits: What the prediction cost, in full trainings.
        trainings: The short trainings.
    """

    d: int
    low: int
    high: int
    D: int
    threshold: float
    metric: str
    baseline: float | None
    full_fits: float
    trainings: tuple[Probe, ...] = ()

    def __repr__(self) -> str:
        reach = "; it may be out of reach: no interval ends below D" if self.low >= self.D else ""
        return (
            f"PredictedDimension: {self.metric} {self.threshold:.4g} at d = {self.d:,} ({self.low:,} to {self.high:,}) "
            f"of D = {self.D:,}, from {len(self.trainings)} short trainings that cost {self.full_fits:.1f} whole "
            f"ones{reach}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        fields = {k: v for k, v in vars(self).items() if k != "trainings"}
        return fields | {"trainings": [{"d": p.d, "seed": p.seed, "value": p.value} for p in self.trainings]}


class PredictionSearch(Search):
    """Short trainings around the d that meets a threshold, by default 0.9 of direct training. An `Engine`."""

    def __init__(self, fitter: Fitter, threshold: float | None) -> None:
        seeds, spending = seeds_from(fitter.settings.seed, 3), Spending(fitter.settings.epochs, SearchGoal())
        super().__init__(fitter.task, fitter.listener, Coordinates(fitter.D), spending, seeds)
        self.fitter, self.threshold = fitter, threshold
        self.baseline: float | None = None

    def next(self) -> Trial | None:
        """The next trial, one at a time: each depends on the one before."""
        if self.running:
            return None
        if self._target() is None:
            return Trial(0, self.seeds[0])
        return next_short_trial(self._curve(), self.seeds)

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take a result. Raises SubcompressError for a training that died."""
        if probe.note == DIED:
            raise SubcompressError(probe.warnings[0])
        super().tell(trial, probe)

    def tell_direct(self, trial: Trial, probe: Probe) -> None:
        self.baseline = probe.value

    def prediction(self) -> PredictedDimension:
        """What the trainings say."""
        curve, D = self._curve(), self.fitter.D
        crossing, error = curve.crossing()
        low, high = (min(D, max(1, round(crossing * math.exp(sign * 2 * error)))) for sign in (-1, 1))
        cost, name = self.spending.spent_fits, self.task.metric_name
        d = min(max(1, round(crossing)), D)
        trainings = tuple(self.told)
        return PredictedDimension(d, low, high, D, curve.target, name, self.baseline, round(cost, 2), trainings)

    def result(self) -> tuple[Probe, dict[str, Any]]:
        """The last training, and the prediction."""
        return self.told[-1], {"prediction": self.prediction()}

    def _target(self) -> float | None:
        if self.threshold is not None or self.baseline is None:
            return self.threshold
        return of_baseline((self.baseline,), minimise=self.task.minimise).value

    def _curve(self) -> Curve:
        target = self._target()
        assert target is not None
        lag = expected_lag(*self.fitter.short_steps)
        curve = Curve(self.task, target, 1, self.fitter.D, self.baseline, lag)
        curve.probes = list(self.told)
        return curve


__all__ = ["PredictedDimension", "PredictionSearch", "first_d", "next_short_trial"]

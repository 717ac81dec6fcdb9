"""The dimensions of a measurement that is given none: first one training at each d on the way to where the metric meets
a threshold, then all repeats at the two neighbors between which it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from subcompress.search.listed import Listed
from subcompress.search.trials import Hopeless, Trial
from subcompress.training.dimension import Threshold
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import Task

RUNGS = 2
"""Dimensions that are tried between one and its double: their ratio is the square root of 2."""

STRIDE = 4
"""Rungs from one training to the next while no crossing is known: a factor of 4 in d."""

Values = Mapping[int, Sequence[float]]
"""The metrics of the trainings at each rung, one for each seed that was trained, in the order of the seeds."""


def ladder(most: int) -> list[int]:
    """Dimensions from 1 to `most`, each about the square root of 2 times the one before."""
    count = math.floor(RUNGS * math.log2(most)) + 1
    return sorted({round(2 ** (i / RUNGS)) for i in range(count)} | {most})


def next_rung(values: Values, met: Callable[[float], bool], begin: int, top: int, repeats: int) -> int | None:
    """The rung to train at next, so that the mean over all repeats is known on both sides of where it first meets the
    threshold; None if it is, or where even the last rung misses it. Every call adds a training, so this ends."""
    means = {i: math.fsum(each) / len(each) for i, each in values.items()}
    above = min((i for i, mean in means.items() if met(mean)), default=None)
    if not means:
        return begin
    if above is None:
        highest = max(means)
        return min(top, highest + STRIDE) if highest < top else _unfilled(values, [top], repeats)
    below = max((i for i in means if i < above), default=None)
    if below is None:
        return max(0, above - STRIDE) if above > 0 else _unfilled(values, [0], repeats)
    return (above + below) // 2 if above - below > 1 else _unfilled(values, [below, above], repeats)


def _unfilled(values: Values, rungs: Sequence[int], repeats: int) -> int | None:
    """The first of the rungs that lacks a repeat."""
    return next((i for i in rungs if len(values[i]) < repeats), None)


class Crossing:
    """Direct trainings, then those that `next_rung` asks for, threshold by threshold. An `Engine`.

    direct: the trials of the baseline; thresholds: computed from their values; D: weights that coordinates act on.
    """

    def __init__(
        self,
        direct: Sequence[Trial],
        thresholds: Callable[[tuple[float, ...]], Sequence[Threshold]],
        D: int,
        task: Task,
        listener: Any,
    ) -> None:
        self.first = Listed(direct, task, listener)
        self.thresholds, self.task, self.listener = thresholds, task, listener
        self.ds = ladder(max(1, D // 2))
        self.begin = min(range(len(self.ds)), key=lambda i: abs(math.log(self.ds[i] ** 2 / D)))
        self.ended: dict[Trial, Probe] = {}

    def values(self, trials: Sequence[Trial]) -> tuple[float, ...]:
        """The metrics of direct trainings."""
        return self.first.values(trials)

    def ask(self, running: Sequence[Trial] = ()) -> Trial | None:
        """The next training; none beside another in coordinates, whose result decides."""
        if (trial := self.first.ask(running)) is not None:
            return trial
        if running:
            return None
        seeds = [trial.seed for trial in self.first.trials]
        values = {i: each for i, d in enumerate(self.ds) if (each := self._values(d, seeds))}
        for threshold in self.thresholds(self.values(self.first.trials)):
            met = self._meets(threshold.value)
            rung = next_rung(values, met, self.begin, len(self.ds) - 1, len(seeds))
            if rung is not None:
                return Trial(self.ds[rung], seeds[len(values.get(rung, ()))])
        return None

    def _meets(self, value: float) -> Callable[[float], bool]:
        return lambda mean: self.task.meets(mean, value)

    def _values(self, d: int, seeds: Sequence[int]) -> list[float]:
        """The metrics at d; that of a training that died meets nothing."""
        worst = math.inf if self.task.minimise else -math.inf
        probes = [self.ended[Trial(d, seed)] for seed in seeds if Trial(d, seed) in self.ended]
        return [worst if p.note == DIED else p.value for p in probes]

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take a result. Raises SubcompressError for a direct training that died."""
        if not trial.d:
            self.first.tell(trial, probe)
            return
        self.ended[trial] = probe
        self.listener.probes(tuple(self.probes()))

    def hopeless(self, trial: Trial) -> Hopeless | None:
        """None: every training is wanted."""
        return None

    def probes(self) -> list[Probe]:
        """Trainings in coordinates that have ended and did not die, by d and seed."""
        found = [probe for probe in self.ended.values() if probe.note != DIED]
        return sorted(found, key=lambda p: (p.d, p.seed))

    def result(self) -> tuple[Probe, dict[str, Any]]:
        """The first training; a measurement looks at all of them."""
        return next(iter(self.first.ended.values())), {}


__all__ = ["Crossing", "ladder", "next_rung"]

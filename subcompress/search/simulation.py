"""Searches on known curves, for tests and benchmarks: a stand-in for a Fitter that answers by a power law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from subcompress.search.goal import SearchGoal
from subcompress.search.knobs import Coordinates, Knob
from subcompress.search.target import TargetSearch
from subcompress.search.trials import Engine, Hopeless, Trial
from subcompress.support.listener import Listener
from subcompress.training.fitter import Fitter
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import Task

EPOCHS = 10
SECONDS = 12.0
"""Seconds of an epoch."""


class PowerLaw:
    """Answers trials from log(error) = log(error at d_true) + slope log(d / d_true) + noise.

    A short training lies above that by `lag`, and by `bend` more with each unit of log(d). target: the accuracy at
    d_true; epochs: those trained so far; seen: the d of each trial. With another knob than d, its turn is meant.
    """

    knob: Knob

    def __init__(self, target: float, D: int, d_true: float, slope: float, noise: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.lag, self.bend = self.rng.normal(0.3, 0.15), self.rng.normal(0, 0.1)
        self.D, self.target, self.d_true, self.slope, self.noise = D, target, d_true, slope, noise
        self.knob = Coordinates(D)
        self.task, self.listener = Task.of(), Listener()
        self.settings = SimpleNamespace(epochs=EPOCHS, seed=0, device="cpu")
        self.data = SimpleNamespace(validation=range(5_000))
        self.epochs, self.short_epochs, self.short_steps = 0, 1, (429, 4290)
        self.seen: list[float] = []

    def say_cost(self, d: int, fits: float, minutes: float) -> None:
        """Do nothing: a fitter times a step here."""
        assert 1 <= d <= self.D

    def probe(self, trial: Trial, hopeless: Hopeless | None = None) -> Probe:
        """The result of a trial."""
        assert 1 <= trial.d <= self.D
        return replace(self._answer(trial, self.knob.turn(trial), hopeless), rate=trial.rate)

    def _answer(self, trial: Trial, turn: float, hopeless: Hopeless | None) -> Probe:
        self.seen.append(turn)
        if turn < self.d_true / 20:
            self.epochs += 4
            return Probe(trial.d, trial.seed, 0.0, (), 4, 4 * SECONDS, True, DIED, warnings=("died",))
        error = math.log(1 - self.target) + self.slope * math.log(turn / self.d_true)
        if trial.short:
            n = self.short_epochs
            error += self.lag + self.bend * math.log(turn / self.d_true) + self.rng.normal(0, self.noise)
            value = 1 - math.exp(min(error, -0.1))
            self.epochs += n
            return Probe(trial.d, trial.seed, value, (value,) * n, n, n * SECONDS, short=True)
        final = 1 - math.exp(min(error + self.rng.normal(0, self.noise), -0.1))
        return self._trained(trial, final, hopeless)

    def _trained(self, trial: Trial, final: float, hopeless: Hopeless | None) -> Probe:
        curve: list[float] = []
        for epoch in range(1, EPOCHS + 1):
            curve.append(1 - min(1.0, (1 - final) * math.exp(0.06 * (EPOCHS - epoch))))
            self.epochs += 1
            if epoch < EPOCHS and hopeless is not None and hopeless(tuple(curve)):
                return Probe(trial.d, trial.seed, curve[-1], tuple(curve), epoch, SECONDS * epoch, True)
        seconds = EPOCHS * SECONDS
        return Probe(trial.d, trial.seed, final, tuple(curve), EPOCHS, seconds, bytes=115 + trial.d // 2)


@dataclass(frozen=True)
class Searched:
    """What a simulated search ended with. rounds: how long it took, in whole trainings, with all of its workers."""

    chosen: Probe
    found: dict[str, Any]
    rounds: float


def simulate(law: PowerLaw, goal: SearchGoal, workers: int = 1) -> Searched:
    """Search a known curve with the given number of workers, which all take the same time for an epoch."""
    engine: Engine = TargetSearch(cast(Fitter, law), goal, law.knob)
    running: list[tuple[float, Trial, Probe]] = []
    now = 0.0
    while True:
        while len(running) < workers and (trial := engine.ask([t for _, t, _ in running])) is not None:
            assert trial not in [t for _, t, _ in running]
            probe = law.probe(trial, engine.hopeless(trial))
            running.append((now + probe.epochs / EPOCHS, trial, probe))
        if not running:
            return Searched(*engine.result(), now)
        first = min(running, key=lambda entry: entry[0])
        running.remove(first)
        now = first[0]
        engine.tell(first[1], first[2])


def laws(n: int, spread: float = 0.6, seed: int = 1) -> Sequence[PowerLaw]:
    """Curves as networks have them: D of 10,000 to 1,000,000, and the d that meets the target off sqrt(D) by a factor
    whose logarithm has that standard deviation. seed: that of the curves and of their noise."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        D = int(10 ** rng.uniform(4, 6))
        d_true = min(math.sqrt(D) * math.exp(rng.normal(0, spread)), D / 4)
        slope, noise = -rng.uniform(0.45, 1.0), rng.uniform(0.03, 0.12)
        found.append(PowerLaw(float(rng.choice([0.9, 0.97])), D, d_true, slope, noise, i + 1_000 * (seed - 1)))
    return found


__all__ = ["PowerLaw", "Searched", "laws", "simulate"]

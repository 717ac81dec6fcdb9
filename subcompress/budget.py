"""The best accuracy within a number of bytes of the whole file.

Bytes of a file are those of its coordinates and those beside them, and both are known before anything is trained: as
many coordinates are taken as fit, and several seeds tried. A file that comes out longer than told is shortened: its
smallest coordinates become zero.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from subcompress.curve import frontier
from subcompress.errors import SubcompressError
from subcompress.fitter import DiedTwiceError, Fitter
from subcompress.goal import Goal
from subcompress.plan import CODED_BITS
from subcompress.probe import Probe
from subcompress.searching import Purse


def check_budget(fitter: Fitter, goal: Goal) -> None:
    """Raise SubcompressError for a budget below the smallest file of the network."""
    if goal.bytes is not None and goal.bytes <= (beside := fitter.beside()):
        raise SubcompressError(
            f"--bytes is at least {beside + 1}, the smallest file of this network, most of it header and digest; given "
            f"{goal.bytes}"
        )


def best_within(fitter: Fitter, goal: Goal) -> tuple[Probe, dict[str, Any]]:
    """The training to keep, and the fields of a Fit that tell of the others.

    Raises SubcompressError where no training makes a file that meets the budget.
    """
    return _Budget(fitter, goal).run()


class _Budget:
    def __init__(self, fitter: Fitter, goal: Goal) -> None:
        assert goal.bytes is not None
        self.fitter, self.task, self.bytes = fitter, fitter.task, goal.bytes
        self.seeds = [(fitter.settings.seed + i) % (1 << 64) for i in range(goal.seeds)]
        self.goal, self.purse = goal, Purse(fitter, goal)
        self.probes: list[Probe] = []
        self.beside = fitter.beside()

    def run(self) -> tuple[Probe, dict[str, Any]]:
        self.fitter.say_cost(self._d(), len(self.seeds), self.goal.max_minutes)
        for seed in self.seeds:
            if not self.probes or self.purse.room() >= 1:
                self._probe(seed)
        chosen = self._best()
        values = [p.value for p in self._fitting()]
        return chosen, {
            "within": self.bytes,
            "probes": tuple(self.probes),
            "frontier": frontier(self.probes, self.task.minimise),
            "validation_spread": statistics.stdev(values) if len(values) > 1 else None,
            "full_fits": round(self.purse.spent_fits, 3),
        }

    def _d(self) -> int:
        """Coordinates that fit."""
        seen = [8 * p.coded / p.d for p in self.probes if p.coded]
        each = statistics.fmean(seen) if seen else CODED_BITS[self.fitter.settings.bits]
        return self.fitter.possible(int(8 * (self.bytes - self.beside) / each))

    def _probe(self, seed: int) -> None:
        d = self._d()
        try:
            probe = self.fitter.probe(d, seed, within=self.bytes)
        except DiedTwiceError as e:
            values = [p.value for p in self.probes]
            worst = max(values, default=math.inf) if self.task.minimise else min(values, default=0.0)
            probe = Probe(d, seed, worst, (), e.epochs, e.seconds, True, "died twice")
        self.purse.pay(probe)
        self.probes.append(probe)
        self.fitter.listener.probes(tuple(self.probes))

    def _fitting(self) -> list[Probe]:
        return [p for p in self.probes if 0 < p.bytes <= self.bytes]

    def _best(self) -> Probe:
        if not self._fitting():
            sizes = [p.bytes for p in self.probes if p.bytes]
            why = f"the smallest file took {min(sizes)} bytes" if sizes else "every training died"
            raise SubcompressError(f"no file of at most {self.bytes} bytes came of {len(self.probes)} trainings: {why}")
        return (min if self.task.minimise else max)(self._fitting(), key=lambda p: p.value)

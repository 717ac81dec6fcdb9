"""The best accuracy within a number of bytes of the whole file.

The search trains as many coordinates as fit. The bytes of a coordinate are guessed before the first training, and
measured after it. If a file misses the budget by more than a few bytes, it is trained once more, with the d that the
measured bytes give. Once rounding begins, bits have a price if the coordinates do not fit. If the file is still too
long, its smallest coordinates become zero until it fits. If d is given, exactly d coordinates are trained. If each
weight has a coordinate, longer rounding steps make them fit, and a rate, if one is given, is the only price.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.search.curve import frontier
from subcompress.search.goal import SearchGoal
from subcompress.search.spending import Spending
from subcompress.search.target import judged
from subcompress.search.trials import Hopeless, Trial
from subcompress.subspace.plan import CODED_BITS
from subcompress.training.fitter import Fitter
from subcompress.training.probe import Probe

CUT = 0.01
"""A share of the budget. A file that was cut by more is trained again, with fewer coordinates."""

SPARE = 0.03
"""A share of the budget. A file that leaves more of it unused is trained again, with more coordinates."""

GROWN = 1.05
"""Bits of a coordinate at the end of a training, divided by its bits when rounding begins (CODED_BITS)."""

LEAST = 2
"""A file may always miss the budget by this many bytes."""

MARGIN = 0.01
"""A share of the budget that is left free, in addition to LEAST bytes. The size after training differs a little from
the size that training aims at, and each byte that is cut afterwards costs accuracy."""


def check_budget(fitter: Fitter, goal: SearchGoal) -> None:
    """Raise SubcompressError for a budget below the smallest file of the network."""
    if goal.bytes is not None and goal.bytes <= (beside := fitter.beside()):
        raise SubcompressError(
            f"--bytes must be at least {beside + 1}, the smallest file of this network, most of it header and digest; "
            f"got {goal.bytes}"
        )


class BudgetSearch:
    """The best file within a number of bytes; see the module. An `Engine`."""

    def __init__(self, fitter: Fitter, goal: SearchGoal) -> None:
        assert goal.bytes is not None
        self.fitter, self.task, self.bytes, self.goal = fitter, fitter.task, goal.bytes, goal
        self.spending = Spending(fitter.settings.epochs, goal)
        self.seeds = [(fitter.settings.seed + i) % (1 << 64) for i in range(goal.seeds)]
        self.probes: list[Probe] = []
        self.beside = fitter.beside()
        self.given = None if goal.d is None else fitter.lowered(goal.d)
        fitter.say_cost(self._d(), len(self.seeds), goal.max_minutes)

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take the result of a trial."""
        self.spending.pay(probe)
        self.probes.append(judged(probe, self.probes, self.task.minimise))
        self.fitter.listener.probes(tuple(self.probes))

    def ask(self, running: Sequence[Trial] = ()) -> Trial | None:
        """The next trial: with a seed that has none yet, or once more if a file misses the budget."""
        room = self.spending.room(len(running))
        for seed in self.seeds:
            if any(trial.seed == seed for trial in running):
                continue
            own = [p for p in self.probes if p.seed == seed]
            first = not own and (room >= 1 or not (self.probes or running))
            if first or (len(own) == 1 and self._misses(own[0]) and room >= 1 + self._missing()):
                return Trial(self._d(), seed, limit=self.bytes, room=self._room())
        return None

    def hopeless(self, trial: Trial) -> Hopeless | None:
        """None: every training may be the best."""
        return None

    def result(self) -> tuple[Probe, dict[str, Any]]:
        """The training to keep, and the fields of a Fit that describe the others. Raises SubcompressError if no
        training makes a file that meets the budget."""
        chosen = self._best()
        values = [p.value for p in self._fitting()]
        return chosen, {
            "within": self.bytes,
            "probes": tuple(self.probes),
            "frontier": frontier(self.probes, self.task.minimise),
            "validation_spread": statistics.stdev(values) if len(values) > 1 else None,
            "full_fits": round(self.spending.spent_fits, 3),
        }

    def _missing(self) -> int:
        """The seeds that no training has used yet."""
        return len(self.seeds) - len({p.seed for p in self.probes})

    def _room(self) -> int:
        """The bytes that the coordinates should take, without the bytes of running statistics so far."""
        taken = [p.statistics for p in self.probes if p.bytes]
        room = self.bytes - self.beside - round(statistics.fmean(taken) if taken else 0)
        return max(1, room - round(min(LEAST + MARGIN * self.bytes, room / 4)))

    def _d(self) -> int:
        """The number of coordinates: the given one, or as many as fit, by the bits that each took so far."""
        if self.given is not None:
            return self.given
        seen = [8 * (p.coded - p.statistics + p.cut) / p.d for p in self.probes if p.bytes]
        each = statistics.fmean(seen) if seen else GROWN * CODED_BITS[self.fitter.settings.bits]
        return self.fitter.possible(int(8 * self._room() / each))

    def _misses(self, probe: Probe) -> bool:
        """Whether a training shows that another d makes more of the budget."""
        allowed = max(CUT * self.bytes, LEAST), max(SPARE * self.bytes, LEAST)
        missed = probe.cut > allowed[0] or self.bytes - probe.bytes > allowed[1]
        return probe.bytes > 0 and missed and all(p.d != self._d() for p in self.probes if p.seed == probe.seed)

    def _fitting(self) -> list[Probe]:
        return [p for p in self.probes if 0 < p.bytes <= self.bytes]

    def _best(self) -> Probe:
        if not self._fitting():
            sizes = [p.bytes for p in self.probes if p.bytes]
            why = f"the smallest file took {min(sizes)} bytes" if sizes else "every training died"
            raise SubcompressError(f"no file of at most {self.bytes} bytes came of {len(self.probes)} trainings: {why}")
        return (min if self.task.minimise else max)(self._fitting(), key=lambda p: p.value)

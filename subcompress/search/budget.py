"""The best accuracy within a number of bytes of the whole file.

The search trains as many coordinates as fit. The bytes of a coordinate are guessed before the first training, and
measured after it. If a file misses the budget by more than a few bytes, it is trained once more, with the d that the
measured bytes give. Once rounding begins, bits have a price if the coordinates do not fit. If the file is still too
long, its smallest coordinates become zero until it fits. If d is given, exactly d coordinates are trained. If each
weight has a coordinate, longer rounding steps make them fit, and a rate, if one is given, is the only price.
"""

from __future__ import annotations

import statistics
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.search.curve import frontier
from subcompress.search.engine import Search, seeds_from
from subcompress.search.goal import SearchGoal
from subcompress.search.knobs import Coordinates
from subcompress.search.spending import Spending
from subcompress.search.trials import Trial
from subcompress.subspace.plan import CODED_BITS
from subcompress.training.fitter import Fitter
from subcompress.training.probe import Probe

CUT = 0.01
"""A share of the budget. A file that was cut by more is trained again, with fewer coordinates."""

SPARE = 0.03
"""A share of the budget. A file that leaves more of it unused is trained again, with more coordinates; one that fits
only with longer steps of rounding, by more than this share, with fewer."""

GROWN = 1.03
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


class BudgetSearch(Search):
    """Finds the best file within a number of bytes; see the module. An `Engine`. The bytes of the coordinates must be
    proportional to the turn of its knob: d, or the only d given. No training is hopeless: each may be the best."""

    def __init__(self, fitter: Fitter, goal: SearchGoal) -> None:
        assert goal.bytes is not None
        knob = Coordinates(fitter.D, None if goal.d is None else fitter.lowered(goal.d))
        seeds = seeds_from(fitter.settings.seed, goal.seeds)
        super().__init__(fitter.task, fitter.listener, knob, Spending(fitter.settings.epochs, goal), seeds)
        self.fitter, self.goal, self.bytes = fitter, goal, goal.bytes
        self.beside = fitter.beside()
        fitter.say_cost(self._trial(self.seeds[0]).d, len(self.seeds), goal.max_minutes)

    @property
    def probes(self) -> list[Probe]:
        """The trainings that have ended."""
        return self.told

    def next(self) -> Trial | None:
        """The next trial: with a seed that has none, or one more where a file misses the budget."""
        room, running = self.room(), self.running
        for seed in self.seeds:
            if any(trial.seed == seed for trial in running):
                continue
            own = [p for p in self.probes if p.seed == seed]
            first = not own and (room >= 1 or not (self.probes or running))
            if first or (len(own) == 1 and self._misses(own[0]) and room >= 1 + self._missing()):
                return self._trial(seed)
        return None

    def _trial(self, seed: int) -> Trial:
        return self.knob.trial(self._turn(), seed, limit=self.bytes, room=self._coded())

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

    def _coded(self) -> int:
        """Bytes to aim at for coordinates, without what running statistics have taken so far."""
        taken = [p.statistics for p in self.probes if p.bytes]
        room = self.bytes - self.beside - round(statistics.fmean(taken) if taken else 0)
        return max(1, room - round(min(LEAST + MARGIN * self.bytes, room / 4)))

    def _turn(self) -> float:
        """The turn that is given, or as far as fits, at the bits that each unit of it took so far."""
        low, high = self.knob.range
        if low == high:
            return low
        seen = [8 * (p.coded - p.statistics + p.cut + p.pressed) / self.knob.turn(p) for p in self.probes if p.bytes]
        each = statistics.fmean(seen) if seen else GROWN * CODED_BITS[self.fitter.settings.bits]
        return self.fitter.possible(int(8 * self._coded() / each))

    def _misses(self, probe: Probe) -> bool:
        """Whether a training shows that another d makes more of the budget."""
        allowed = max(CUT * self.bytes, LEAST), max(SPARE * self.bytes, LEAST)
        missed = probe.cut > allowed[0] or max(probe.pressed, self.bytes - probe.bytes) > allowed[1]
        turn = self._turn()
        same = any(self.knob.turn(p) == turn for p in self.probes if p.seed == probe.seed)
        return probe.bytes > 0 and missed and not same

    def _fitting(self) -> list[Probe]:
        return [p for p in self.probes if 0 < p.bytes <= self.bytes]

    def _best(self) -> Probe:
        if not self._fitting():
            sizes = [p.bytes for p in self.probes if p.bytes]
            why = f"the smallest file took {min(sizes)} bytes" if sizes else "every training died"
            raise SubcompressError(f"{len(self.probes)} trainings gave no file of at most {self.bytes} bytes: {why}")
        return (min if self.task.minimise else max)(self._fitting(), key=lambda p: p.value)

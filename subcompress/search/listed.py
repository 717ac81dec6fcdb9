"""Trials that are known from the start: one in d coordinates, or the curve of a measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.search.curve import frontier
from subcompress.search.engine import Search
from subcompress.search.goal import SearchGoal
from subcompress.search.knobs import Coordinates
from subcompress.search.spending import Spending
from subcompress.search.trials import Trial
from subcompress.support.listener import Listener
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import Task


class Listed(Search):
    """The trials of a list, in its order, whatever they cost. An `Engine`."""

    def __init__(self, trials: Sequence[Trial], task: Task, listener: Listener) -> None:
        most = max(trial.d for trial in trials)
        super().__init__(task, listener, Coordinates(max(most, 1)), Spending(1, SearchGoal(max_fits=math.inf)), ())
        self.trials = list(trials)
        self.ended: dict[Trial, Probe] = {}

    def next(self) -> Trial | None:
        """The first that has not begun."""
        return next((trial for trial in self.trials if trial not in self.ended and trial not in self.running), None)

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take a result. Raises SubcompressError for a training that died, because nothing can replace it."""
        if probe.note == DIED:
            where = f"at d = {trial.d}, seed {trial.seed}, " if len(self.trials) > 1 else ""
            raise SubcompressError(where + probe.warnings[0])
        self.ended[trial] = probe
        if trial.d:
            self.listener.probes(tuple(self.probes()))

    def probes(self) -> list[Probe]:
        """The finished trainings in coordinates, in the order of the list."""
        return [self.ended[trial] for trial in self.trials if trial.d and trial in self.ended]

    def values(self, trials: Sequence[Trial]) -> tuple[float, ...]:
        """The metrics of trials that have ended."""
        return tuple(self.ended[trial].value for trial in trials)

    def result(self) -> tuple[Probe, dict[str, Any]]:
        """The first training, and all of them."""
        found = self.probes()
        return found[0], {"probes": tuple(found), "frontier": frontier(found, self.task.minimise)}


__all__ = ["Listed"]

"""An engine whose trials are known from the start: a single training, or those of a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subcompress.errors import SubcompressError
from subcompress.search.curve import frontier
from subcompress.search.trials import Hopeless, Trial
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import Task


class Listed:
    """The trials of a list, in its order. An `Engine`."""

    def __init__(self, trials: Sequence[Trial], task: Task, listener: Any) -> None:
        self.trials, self.task, self.listener = list(trials), task, listener
        self.ended: dict[Trial, Probe] = {}

    def ask(self, running: Sequence[Trial] = ()) -> Trial | None:
        """The first trial that has not begun."""
        return next((trial for trial in self.trials if trial not in self.ended and trial not in running), None)

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take a result. Raises SubcompressError for a training that died, because nothing can replace it."""
        if probe.note == DIED:
            where = f"at d = {trial.d}, seed {trial.seed}, " if len(self.trials) > 1 else ""
            raise SubcompressError(where + probe.warnings[0])
        self.ended[trial] = probe
        if trial.d:
            self.listener.probes(tuple(self.probes()))

    def hopeless(self, trial: Trial) -> Hopeless | None:
        """None: no training is stopped early."""
        return None

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

"""The one search: it asks for trials of one knob and takes their results, in any order and from anyone.

What it looks for is its aim, and each aim is a class of its own: a target (`TargetSearch`), a number of bytes
(`BudgetSearch`), where a metric crosses a threshold (`PredictionSearch`), or a curve at given values (`Listed`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from subcompress.search.knobs import Knob
from subcompress.search.spending import Spending
from subcompress.search.trials import Hopeless, Trial
from subcompress.support.listener import Listener
from subcompress.training.probe import DIED, Probe
from subcompress.training.tasks import Task


class Search(ABC):
    """Asks for trials of a knob and receives their results; see the module. An `Engine`.

    Args:
        task: What is learned.
        listener: Hears of the trainings that have ended.
        knob: What is varied.
        spending: What it may cost.
        seeds: Those that a trial can have.

    Attributes:
        told: Trainings in coordinates that have ended, in the order in which they were told.
        running: Trials that others have begun.
    """

    def __init__(self, task: Task, listener: Listener, knob: Knob, spending: Spending, seeds: Sequence[int]) -> None:
        self.task, self.listener, self.knob, self.spending, self.seeds = task, listener, knob, spending, seeds
        self.told: list[Probe] = []
        self.running: list[Trial] = []

    def ask(self, running: Sequence[Trial] = ()) -> Trial | None:
        """The next trial beside those that are running. None: wait for one of them, or, if none runs, the end."""
        self.running = list(running)
        return self.next()

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take the result of a trial, also of one that was not asked for."""
        self.spending.pay(probe)
        if trial.d == 0:
            self.tell_direct(trial, probe)
            return
        self.told.append(judged(probe, self.told, self.task))
        self.listener.probes(tuple(self.told))

    def tell_direct(self, trial: Trial, probe: Probe) -> None:
        """Take the result of the network trained directly. By default it is ignored."""
        return

    def hopeless(self, trial: Trial) -> Hopeless | None:
        """When to stop the trial; by default never."""
        return None

    def room(self) -> float:
        """Trainings that are left beside those that are running."""
        return self.spending.room(len(self.running))

    @abstractmethod
    def next(self) -> Trial | None:
        """What `ask` returns, given `running`."""

    @abstractmethod
    def result(self) -> tuple[Probe, dict[str, Any]]:
        """The training to keep, and the fields of a Fit that tell of the search. Raises SubcompressError if no
        training made a file."""


def judged(probe: Probe, others: Sequence[Probe], task: Task) -> Probe:
    """The probe, with the worst metric of the others if it died: it has none."""
    if probe.note != DIED:
        return probe
    values = [p.value for p in others]
    lowest = 0.0 if task.has_accuracy_range else -math.inf
    worst = max(values, default=math.inf) if task.minimise else min(values, default=lowest)
    return replace(probe, value=worst)


def seeds_from(first: int, n: int) -> list[int]:
    """The given number of seeds, of which the first one is given."""
    return [(first + i) % (1 << 64) for i in range(n)]


__all__ = ["Search", "judged", "seeds_from"]

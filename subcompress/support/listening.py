"""Who hears of a training, and what: without torch, for who shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run stands, once an epoch: loss is the mean over the last steps, value the metric on the validation
    split, seconds since the run began."""

    epoch: int
    epochs: int
    loss: float
    value: float
    seconds: float
    note: str = ""
    metric: str = "accuracy"


@dataclass(frozen=True)
class StepProgress:
    """Where a run stands within an epoch: `step` of `steps` in all, loss the mean over the last ones, seconds since the
    run began."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float


class Listener:
    """Hears what happens; does nothing unless a method is overridden."""

    def note(self, text: str) -> None:
        """A line a person should read: costs, warnings, how tensors start."""

    def run(self, title: str, epochs: int) -> None:
        """A training begins, or goes on."""

    def epoch(self, progress: Progress) -> None:
        """An epoch has ended."""

    def step(self, progress: StepProgress) -> None:
        """A while has passed within an epoch."""

    def probes(self, probes: Sequence[Any]) -> None:
        """The search has one more probe; all of them so far."""

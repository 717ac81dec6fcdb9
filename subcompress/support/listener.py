"""Who hears of a training, and what: without torch, for who shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far a training is, once an epoch.

    Attributes:
        loss: Mean over the last steps.
        value: The metric on the validation split.
        seconds: Seconds since the training began.
    """

    epoch: int
    epochs: int
    loss: float
    value: float
    seconds: float
    note: str = ""
    metric: str = "accuracy"


@dataclass(frozen=True)
class StepProgress:
    """How far a training is, within an epoch.

    Attributes:
        epoch: The epoch under way.
        epochs: All epochs.
        step: The step under way, of all epochs.
        steps: All steps.
        loss: Mean over the last steps.
        seconds: Seconds since the training began.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float


class Listener:
    """Hears of the progress of `fit`, `compare` and `measure_dimension`. Override the methods that you need."""

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

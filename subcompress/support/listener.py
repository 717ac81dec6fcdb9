"""Training progress reports and the Listener that receives them; does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """The progress of a training run, reported once per epoch.

    Attributes:
        loss: Mean loss over the last steps.
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
    """The progress of a training run within an epoch.

    Attributes:
        epoch: The current epoch.
        epochs: The number of epochs.
        step: The current step, counted over all epochs.
        steps: The number of steps.
        loss: Mean loss over the last steps.
        seconds: Seconds since the training began.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float


class Listener:
    """Receives the progress of `fit`, `compare` and `measure_dimension`. Override the methods that you need."""

    def note(self, text: str) -> None:
        """Handle a line for the user: costs, warnings, how tensors start."""

    def run(self, title: str, epochs: int) -> None:
        """Handle the start or the continuation of a training run."""

    def epoch(self, progress: Progress) -> None:
        """Handle the end of an epoch."""

    def step(self, progress: StepProgress) -> None:
        """Handle progress within an epoch, reported at intervals of time."""

    def probes(self, probes: Sequence[Any]) -> None:
        """Handle a new probe of the search. probes: all of them so far."""

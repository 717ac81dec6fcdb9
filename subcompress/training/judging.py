"""Whether a training is dead: its loss no number, or no better than guessing."""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

WINDOW = 50
"""Steps over which the training loss is averaged when a run is judged."""

PATIENCE = 150
"""Steps before a run may be called no better than guessing: the step size is still rising before."""

FALLING = 0.99
"""A loss that falls to this share of itself within a window may yet come below guessing."""


class DeadRunError(Exception):
    """The loss is not finite, or no better than guessing; `share` of the run's steps were trained, in `seconds`."""

    def __init__(self, text: str, share: float = 1.0) -> None:
        super().__init__(text)
        self.share, self.seconds = share, 0.0


class Judge:
    """Watches the training loss, and ends a run that is dead. guess: what the best constant answer costs, if known;
    rounding: the step at which rounding begins, if it does. The loss may jump there, and comes back."""

    def __init__(self, guess: float | None, total: int) -> None:
        self.guess, self.total, self.worst, self.before = guess, total, math.inf, math.inf
        self.rounding: int | None = None
        self.recent = deque[Tensor](maxlen=WINDOW)

    def see(self, loss: Tensor, step: int) -> None:
        """Take one more loss. There is a verdict only every WINDOW steps, because each one waits for the device."""
        self.recent.append(loss.reshape(()))
        if step == 1:
            self.worst = 3 * max(self.guess or 0.0, abs(float(loss.detach()))) + 1
        if step % WINDOW == 0:
            self.verdict(step)

    def mean(self) -> float:
        """Over the last steps."""
        return float(torch.stack([x.float().cpu() for x in self.recent]).mean())

    def verdict(self, step: int) -> None:
        """Raise DeadRunError where the loss is no number, far above the first, or late, not below guessing and not
        falling any more."""
        since = 0 if self.rounding is None or step <= self.rounding else self.rounding
        late = self.guess is not None and step - since >= max(0.3 * (self.total - since), PATIENCE)
        mean, before = self.mean(), self.before
        self.before = mean
        stuck = late and not mean < 0.99 * (self.guess or 0.0) and not mean < FALLING * before
        if stuck or not mean < self.worst:
            worth = f", and guessing gives {self.guess:.3f}" if self.guess is not None else ""
            raise DeadRunError(f"after {step} of {self.total} steps the loss is {mean:.3f}{worth}", step / self.total)


__all__ = ["WINDOW", "DeadRunError", "Judge"]

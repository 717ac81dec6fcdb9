"""The options that all trainings of a run share, with defaults filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from subcompress.subspace.plan import Plan
from subcompress.support.names import AUTO, DEFAULT_ROLES
from subcompress.training.loop import TrainOptions

BASELINE_RATES = (2e-3, 1e-3, 4e-3)
"""Adam's largest steps that are tried for the network trained directly; the first is taken where none is searched."""

BASED_BASELINE_RATES = (5e-5, 2e-5, 1e-4)
"""The same for a network trained on from a base."""


SHARE, LEAST_STEPS = 0.1, 200
"""A short training takes this share of the epochs, and no fewer steps than that: after fewer, little is learned yet."""


LONG = 4_000
"""Steps of a training from which on the default learning rate falls with the length of the training."""


def usual_lr(plan: Plan, steps: int) -> float:
    """The default peak learning rate of the coordinates, for a training of so many steps.

    It falls with the root of the length: LeNet in 700 bytes, trained for 45 epochs, needed smaller steps
    (benchmarks/records.py). Up to 30 epochs, no rate is clearly better (benchmarks/learning_rate.py).
    """
    return plan.lr * min(1.0, math.sqrt(LONG / max(1, steps)))


@dataclass(frozen=True)
class Settings:
    """See the module. device: cpu, cuda or cuda:N; rounded: whether coordinates are rounded to bits."""

    bits: int = 4
    epochs: int = 10
    seed: int = 0
    lr: float | None = None
    batch_size: int = 128
    device: str = "cpu"
    operator: str = AUTO
    structured: str = "random"
    rounded: bool = True
    rate: float = 0.0
    optimiser: str = "adam"
    act_on: str = DEFAULT_ROLES
    precision: str = "fp32"
    drop: tuple[str, ...] = ()
    steps: int | None = None
    shards: int = 1
    accumulate: int = 1
    checkpointing: bool = False

    def recipe(
        self, seed: int, plan: Plan | None = None, epochs: int | None = None, lr: float = BASELINE_RATES[0]
    ) -> TrainOptions:
        """How to train in the plan's coordinates, or directly with that step, which one worker does in whole batches.
        epochs: those of a short training; by default all."""
        steps = self.steps
        if epochs is not None and steps is not None:
            steps = max(1, round(steps * epochs / self.epochs))
        epochs = self.epochs if epochs is None else epochs
        if plan is None:
            return TrainOptions(
                epochs,
                lr,
                self.batch_size,
                seed,
                precision=self.precision,
                steps=steps,
                accumulate=self.accumulate,
                checkpointing=self.checkpointing,
            )
        return TrainOptions(
            epochs,
            self.lr if self.lr is not None else plan.lr,
            self.batch_size,
            seed,
            rate=self.rate,
            optimiser=self.optimiser,
            precision=self.precision,
            steps=steps,
            shards=self.shards,
            accumulate=self.accumulate,
            checkpointing=self.checkpointing,
        )

    def short_epochs(self, examples: int) -> int:
        """Epochs of a short training on the given number of examples, which shows a search where to look."""
        least = math.ceil(LEAST_STEPS / max(1, examples // self.batch_size))
        return min(self.epochs, max(1, round(SHARE * self.epochs), least))


__all__ = ["BASED_BASELINE_RATES", "BASELINE_RATES", "Settings", "usual_lr"]

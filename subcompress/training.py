"""The training loop: Adam in z, one cycle of the step size, rounding for the second half."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from subcompress.data import Split
from subcompress.errors import SubcompressError

WINDOW = 50
"""Steps over which the training loss is averaged when a run is judged."""

PATIENCE = 150
"""Steps before a run may be called no better than guessing: the step size is still rising before."""


@dataclass(frozen=True)
class Recipe:
    """How to train. lr: the largest step of Adam, per coordinate; rounding begins after `quantise_after` of the run."""

    epochs: int
    lr: float
    batch_size: int = 128
    seed: int = 0
    quantise_after: float = 0.5


@dataclass(frozen=True)
class Progress:
    """Where a run stands, once an epoch: loss is the mean over the last steps, seconds since the run began."""

    epoch: int
    epochs: int
    loss: float
    validation_accuracy: float
    seconds: float
    note: str = ""


Listener = Callable[[Progress], None]


class DeadRunError(Exception):
    """The loss is not finite, or no better than guessing."""


def check_recipe(recipe: Recipe, train: Split) -> None:
    """Raise SubcompressError for numbers that cannot be trained with."""
    rules = [
        (recipe.epochs >= 1, "--epochs is at least 1", recipe.epochs),
        (
            1 <= recipe.batch_size <= len(train),
            f"--batch-size is between 1 and the {len(train)} examples",
            recipe.batch_size,
        ),
        (math.isfinite(recipe.lr) and recipe.lr > 0, "--lr is positive", recipe.lr),
        (0 <= recipe.seed < 1 << 64, "--seed is between 0 and 2^64 - 1", recipe.seed),
    ]
    for holds, rule, given in rules:
        if not holds:
            raise SubcompressError(f"{rule}; given {given}")


def train(
    module: nn.Module,
    train_split: Split,
    validation: Split,
    recipe: Recipe,
    *,
    quantise: Callable[[], None] | None = None,
    listener: Listener | None = None,
    note: str = "",
) -> float:
    """Train what `module.parameters()` names; returns the validation accuracy at the end.

    The order of the examples depends on the seed alone. `quantise` is called once, when rounding begins. Raises
    DeadRunError early for a run whose loss is not finite or not below guessing.
    """
    parameters = list(module.parameters())
    device = parameters[0].device
    order = torch.Generator().manual_seed(recipe.seed & ((1 << 63) - 1))
    x, y = train_split.x.to(device), train_split.y.to(device)
    steps_per_epoch = len(train_split) // recipe.batch_size
    total = recipe.epochs * steps_per_epoch
    optimiser = torch.optim.Adam(parameters, lr=recipe.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=max(total, 2))
    began, judge, accuracy, step = time.perf_counter(), _Judge(y, total), 0.0, 0
    for epoch in range(1, recipe.epochs + 1):
        module.train()
        shuffled = torch.randperm(len(train_split), generator=order).to(device)
        for batch in shuffled[: steps_per_epoch * recipe.batch_size].split(recipe.batch_size):
            if quantise is not None and step == int(total * recipe.quantise_after):
                quantise()
            loss = cross_entropy(module(x[batch]), y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            judge.see(loss.detach(), step)
        accuracy = accuracy_of(module, validation)
        if listener is not None:
            listener(Progress(epoch, recipe.epochs, judge.mean(), accuracy, time.perf_counter() - began, note))
    judge.verdict(step)
    return accuracy


class _Judge:
    """Watches the training loss, and ends a run that is dead."""

    def __init__(self, y: Tensor, total: int) -> None:
        self.guess, self.total, self.worst = guessing_loss(y), total, math.inf
        self.recent = deque[Tensor](maxlen=WINDOW)

    def see(self, loss: Tensor, step: int) -> None:
        """One more loss; a verdict every so many steps, since each one waits for the device."""
        self.recent.append(loss)
        if step == 1:
            self.worst = 3 * max(self.guess, float(loss)) + 1
        if step % WINDOW == 0:
            self.verdict(step)

    def mean(self) -> float:
        """Over the last steps."""
        return float(torch.stack(list(self.recent)).mean())

    def verdict(self, step: int) -> None:
        """Raise DeadRunError where the loss is no number, far above the first, or late and not below guessing."""
        late = step >= max(0.3 * self.total, PATIENCE)
        mean = self.mean()
        if not mean < (0.99 * self.guess if late else self.worst):
            raise DeadRunError(
                f"after {step} of {self.total} steps the loss is {mean:.3f}, guessing costs {self.guess:.3f}"
            )


def guessing_loss(y: Tensor) -> float:
    """Entropy of the labels in nats: the cross-entropy of the best constant answer."""
    p = torch.bincount(y).double() / len(y)
    return float(-torch.special.xlogy(p, p).sum())


@torch.no_grad()
def accuracy_of(module: nn.Module, split: Split, batch_size: int = 1000) -> float:
    """Fraction of the split that the module, in evaluation mode, puts first."""
    module.eval()
    device = next(iter(module.parameters()), next(iter(module.buffers()), torch.empty(0))).device
    batches = zip(split.x.split(batch_size), split.y.split(batch_size), strict=True)
    return sum(int((module(x.to(device)).argmax(1) == y.to(device)).sum()) for x, y in batches) / len(split)

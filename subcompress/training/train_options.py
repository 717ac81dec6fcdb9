"""The numeric options of one training, and their valid ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from subcompress.errors import SubcompressError
from subcompress.support.suggestions import suggestion
from subcompress.training.optimizers import OPTIMIZERS
from subcompress.training.schemas import MAX_LR

EPOCHS = 10
"""The epochs of a training for which neither epochs nor steps are given."""

PRECISIONS = ("fp32", "bf16")
"""bf16: products of a training step in bfloat16, several times faster where the processor has them."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train. lr: the largest step of Adam, per coordinate; rounding begins after `quantise_after` of the run;
    observe_after: from where on gradients tell how to round, see `Curvature`; rate: what a bit of the coordinates costs
    once rounding has begun, in units of the loss; optimiser: one of OPTIMIZERS; precision: that of training steps, one
    of PRECISIONS. Measurements and the weights themselves are float32. steps: the number of steps after which the run
    ends, within its last epoch, see `epochs_of`. shards: parts of a batch that are run one by one, or by several
    workers, see `subcompress.training.sharding`. accumulate: parts in which a batch, or a shard of one, passes through
    the network; checkpointing: layers of transformers run once more in the backward pass."""

    epochs: int
    lr: float
    batch_size: int = 128
    seed: int = 0
    quantise_after: float = 0.9
    observe_after: float = 0.6
    rate: float = 0.0
    optimiser: str = "adam"
    precision: str = "fp32"
    steps: int | None = None
    shards: int = 1
    accumulate: int = 1
    checkpointing: bool = False

    def rounded_early(self) -> TrainOptions:
        """The same, rounded from half-way on: a price on bits acts on rounded coordinates alone, and needs time."""
        return replace(self, quantise_after=0.5, observe_after=1.0)

    def total(self, examples: int) -> int:
        """Steps of the whole run."""
        whole = self.epochs * (examples // max(1, self.batch_size))
        return whole if self.steps is None else min(self.steps, whole)

    def autocast(self, device: torch.device) -> torch.autocast:
        """What the forward pass of a step runs in."""
        # No cache: it would keep the first step's weights for as long as any other autocast lasts around this one.
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False)


def epochs_of(epochs: int | None, steps: int | None, examples: int, batch_size: int) -> int:
    """Passes over the training split: as told, or as many as so many steps begin. Raises SubcompressError."""
    if steps is None:
        return EPOCHS if epochs is None else epochs
    if epochs is not None:
        raise SubcompressError(
            f"--epochs and --steps both say how long to train; got {epochs} and {steps}: give only one"
        )
    if steps < 1:
        raise SubcompressError(f"--steps must be at least 1; got {steps}")
    return -(-steps // max(1, examples // max(1, batch_size)))


def _divided(recipe: TrainOptions) -> str:
    """What --accumulate cuts."""
    if recipe.shards > 1:
        return f"the examples of a shard, here {recipe.batch_size // recipe.shards}"
    return f"--batch-size, here {recipe.batch_size}"


def check_recipe(recipe: TrainOptions, examples: int) -> None:
    """Raise SubcompressError for numbers that cannot be trained with."""
    rules = [
        (recipe.epochs >= 1, "--epochs must be at least 1", recipe.epochs),
        (
            1 <= recipe.batch_size <= examples,
            f"--batch-size must be between 1 and the {examples} examples",
            recipe.batch_size,
        ),
        (recipe.shards >= 1, "--shards must be at least 1", recipe.shards),
        (
            recipe.shards < 1 or recipe.batch_size % recipe.shards == 0,
            f"--shards must divide --batch-size, here {recipe.batch_size}, to cut a batch into equal parts",
            recipe.shards,
        ),
        (recipe.accumulate >= 1, "--accumulate must be at least 1", recipe.accumulate),
        (
            min(recipe.shards, recipe.accumulate) < 1
            or recipe.batch_size % (recipe.shards * recipe.accumulate) == 0
            or recipe.batch_size % recipe.shards != 0,
            f"--accumulate must divide {_divided(recipe)}, to cut it into equal parts",
            recipe.accumulate,
        ),
        (0 < recipe.lr <= MAX_LR, f"--lr must be positive and at most {MAX_LR:g}", recipe.lr),
        (math.isfinite(recipe.rate) and recipe.rate >= 0, "--rate must be at least 0", recipe.rate),
        (0 <= recipe.seed < 1 << 64, "--seed must be between 0 and 2^64 - 1", recipe.seed),
    ]
    if recipe.optimiser not in OPTIMIZERS:
        raise SubcompressError(
            f"--optimizer must be one of {', '.join(OPTIMIZERS)}; got {recipe.optimiser!r}"
            + suggestion(recipe.optimiser, OPTIMIZERS)
        )
    if recipe.precision not in PRECISIONS:
        raise SubcompressError(
            f"--precision must be {' or '.join(PRECISIONS)}; got {recipe.precision}"
            + suggestion(recipe.precision, PRECISIONS)
        )
    for holds, rule, given in rules:
        if not holds:
            raise SubcompressError(f"{rule}; got {given}")


__all__ = ["EPOCHS", "PRECISIONS", "TrainOptions", "check_recipe", "epochs_of"]

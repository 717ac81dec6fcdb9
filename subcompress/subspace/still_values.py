"""Finds the values that direct training does not move, such as padding rows and masked weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from subcompress.format.describing import runs_cost, runs_of
from subcompress.subspace.direct_trial import DirectTrial, Examples, LossOf, flat, rms
from subcompress.subspace.starts import Starts

PASS = 2_000
"""The most batches in which `values_that_stay` looks for gradients of values that had none so far."""

LOOKS = 40
"""The fewest such batches: a smaller split is passed through several times."""

MAX_MASK = 1 << 10
"""The most bytes for a mask of values that no coordinate acts on. If a mask takes more, such as one that the network
itself applies to its weights, these values may move."""


def values_that_stay(
    trial: DirectTrial, starts: Starts, examples: Examples, loss_of: LossOf
) -> tuple[dict[str, np.ndarray], tuple[str, ...], int]:
    """Find values that training does not move.

    Returns masks (n,) by tensor of the constants that no training example moves (padding rows, masked weights); the
    parameters that no forward pass reads; and the number of batches that were used. If there are candidates, these are
    all batches up to PASS.

    The weights are disturbed at random for each batch: a unit that is dead with some weights is not dead with all.
    """
    candidates = {}
    for name, values in starts.values.items():
        if name in trial.read and (~values.random).any():
            mask = ~values.random & (trial.change(name) == 0)
            if mask.any():
                candidates[name] = mask
    if not trial.read or not (candidates or trial.unread()):
        return {}, (), 0
    noise = {n: max(rms(trial.change(n)), _deviation(p)) for n, p in trial.after.items()}
    count = 0
    for batch in _looks(examples):
        count += 1
        trial.module.train(count % 2 == 1)  # a tensor that only evaluation reads counts as read
        with trial.disturbed({n: x * (1 + count % 4) for n, x in noise.items()}):
            loss, depends = trial.backward(batch, loss_of)
            if not depends or not math.isfinite(loss):
                continue
        for name in list(candidates):
            if (grad := trial.after[name].grad) is not None:
                candidates[name] &= flat(grad).float().numpy() == 0
            if not candidates[name].any():
                del candidates[name]
        if not candidates and not trial.unread():
            break
    cheap = {name: mask for name, mask in candidates.items() if _mask_cost(mask) <= MAX_MASK}
    return cheap, trial.unread(), count


def _looks(examples: Examples) -> Iterator[Any]:
    """Yield every batch, up to PASS. The batches of a small split come several times."""
    count = 0
    while True:
        before = count
        for batch in examples(-1):
            if count == PASS:
                return
            count += 1
            yield batch
        if count >= LOOKS or count == before:
            return


def _mask_cost(mask: np.ndarray) -> float:
    """Estimate the bytes that a mask takes in a file."""
    runs = runs_of(mask.astype(np.int64))
    return math.inf if runs is None else runs_cost(runs)


def _deviation(p: Tensor) -> float:
    """The standard deviation of a parameter's values."""
    x = flat(p.detach()).double()
    return float(x.std()) if len(x) > 1 else 0.0


__all__ = ["values_that_stay"]

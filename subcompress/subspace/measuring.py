"""Measures how far each tensor moves in direct training: a few steps of Adam, with the learning rate that suits."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from subcompress.errors import SubcompressError
from subcompress.operators import walsh
from subcompress.subspace.direct_trial import DirectTrial, Examples, LossOf, rms
from subcompress.subspace.moves import Moves
from subcompress.subspace.seeds import seed_everything
from subcompress.subspace.starts import Starts
from subcompress.subspace.still_values import values_that_stay

STEPS = 100
"""The most steps of direct training."""

SHARE = 0.3
"""The measurement takes at most this share of the steps of a fit."""

LEAST, LEAST_BASED = 20, 10
"""The fewest steps of direct training with each learning rate: from scratch, and on a base. On a base, all learning
rates are tried, and one step may take seconds."""

RATES = (3e-3, 1e-3, 3e-4, 1e-4)
"""Learning rates of Adam that are tried for a network from scratch, in this order, until the loss falls."""

LARGER = (1e-2, 3e-2, 1e-1, 3e-1)
"""Learning rates that are tried after the first of RATES, as long as the loss hardly falls and each is better."""

HARDLY = 0.8
"""A loss that stays above this share of the first loss has hardly fallen."""

BETTER = 0.99
"""A trial is better than the best one so far if its loss is below this share of the best one's."""

BASED_RATES = (1e-3, 3e-4, 1e-4, 3e-5)
"""Learning rates of Adam that are tried on a base. The one that ends with the lowest loss is used."""

BLOCK = 10
"""Binary logarithm of the number of rows in which smoothness is measured."""

SAMPLE = 1 << 22
"""The most values in which smoothness is measured."""

Passes = Callable[[bool], Iterator[Iterable[Any]]]
"""Yields passes over the training split without end, each in batches; the same ones at each call. The argument says
whether a pass holds all examples, or only whole batches."""


def examples_of(passes: Passes) -> Examples:
    """Turn passes into batches. The result raises SubcompressError if a pass is empty."""

    def examples(steps: int) -> Iterator[Any]:
        count = 0
        for batches in passes(steps < 0):
            before = count
            for batch in batches:
                if count == steps:
                    return
                count += 1
                yield batch
            if steps < 0:
                return
            if count == before:
                raise SubcompressError(
                    "no batches were given, or they can be iterated only once: give a list or a DataLoader"
                )

    return examples


def measured(
    module: nn.Module,
    starts: Starts,
    examples: Examples,
    loss_of: LossOf,
    *,
    seed: int = 0,
    steps: int = STEPS,
    rates: Sequence[float] = RATES,
    based: bool = False,
    still: Collection[str] = (),
) -> Moves:
    """Train a copy of the module directly for a few steps of Adam and see how far each piece moves.

    module: the network with its starting values. examples: see `Examples`. loss_of: the loss of a module on a batch.
    seed: the seed of dropout and other random layers. rates: learning rates of Adam to try, largest first, until the
    loss falls. based: try them until the loss falls less than before, with half of the steps each, and use the one with
    the lowest loss. still: parameters that do not train, which the copies share with the module. Raises
    SubcompressError if the model or the loss cannot process a batch.
    """
    began = time.perf_counter()
    acting = {name: start for name, start in starts.of().items() if start.moves}
    count = steps_of_each(steps) if based else steps
    best, taken = _best_trial(
        lambda rate: DirectTrial(module, rate, acting, seed, still),
        lambda: examples(count),
        loss_of,
        seed,
        rates,
        based,
    )
    seed_everything(seed, 1)
    still, unread, swept = values_that_stay(best, starts, examples, loss_of)
    still |= {name: np.ones(best.reals(name), bool) for name in unread}
    if not best.falls:  # then the distances are meaningless
        return Moves({}, still, unread, 0.0, taken + swept, time.perf_counter() - began)
    moving = [name for name, start in starts.of(still).items() if start.moves]
    sizes = {name: best.sizes(name, starts, still) for name in moving}
    smooth = smoothness(change for name in moving for change in best.changes(name))
    return Moves(sizes, still, unread, best.rate, taken + swept, time.perf_counter() - began, smooth)


def smoothness(changes: Iterable[np.ndarray]) -> float:
    """Measure how smooth the changes of tensors are, in the order of the layout.

    It is the energy in the quarter of lowest sequency of a Hadamard transform, divided by that of independent numbers.
    It is above 1.6 for networks on images, whose first weights read smooth inputs, and below 1.3 for others
    (benchmarks/moves.py).
    """
    rows: list[np.ndarray] = []
    for change in changes:
        size = rms(change)
        rows.append((change / size if size else change).astype(np.float32)[:SAMPLE])
    x = np.concatenate(rows)[:SAMPLE]
    m = 1 << max(0, min(BLOCK, len(x).bit_length() - 1))
    y = walsh.transform(x[: len(x) // m * m].reshape(-1, m)).astype(np.float64)
    energy = np.square(y).sum(0)
    low = walsh.order(m.bit_length() - 1)[: max(1, m // 4)]
    return float(energy[low].sum() / max(float(energy.sum()), 1e-300) * m / len(low))


def _best_trial(
    begun: Callable[[float], DirectTrial],
    batches: Callable[[], Iterator[Any]],
    loss_of: LossOf,
    seed: int,
    rates: Sequence[float],
    based: bool,
) -> tuple[DirectTrial, int]:
    """Return the best trial and the number of steps of all trials. At most two trials are in memory at a time."""
    best: DirectTrial | None = None
    taken, queue, larger = 0, list(rates), list(() if based else LARGER)
    while queue:
        trial = begun(queue.pop(0))
        seed_everything(seed, 0)
        trial.run(batches(), loss_of)
        taken += trial.steps
        better = best is None or trial.last < BETTER * best.last
        climbs = trial.rate >= rates[0] and trial.last > HARDLY * trial.first and better and bool(larger)
        if best is None or (trial.falls, -trial.last) > (best.falls, -best.last):
            best = trial
        if based:
            if best.falls and best is not trial:  # smaller ones are worse still
                break
            continue
        if trial.falls:
            queue = [larger.pop(0)] if climbs else []
        elif best.falls:
            break
    assert best is not None, "there is a rate at least"
    return best, taken


def steps_of_each(steps: int) -> int:
    """The number of steps of each trial on a base."""
    return max(LEAST_BASED, steps // 2)


def steps_of(total: int) -> int:
    """The number of steps of the measurement, for a fit of `total` steps."""
    return min(STEPS, max(LEAST, int(SHARE * total)))


__all__ = ["Passes", "examples_of", "measured", "smoothness", "steps_of", "steps_of_each"]

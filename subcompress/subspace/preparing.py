"""Preparing a network for a training loop of your own: its initial values, and how far its tensors move."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from subcompress.base import OnBase, attach_base, open_base
from subcompress.subspace.copying import copied
from subcompress.subspace.measuring import BASED_RATES, RATES, STEPS, examples_of, measured
from subcompress.subspace.moves import Moves
from subcompress.subspace.observing import built
from subcompress.subspace.standing import kept
from subcompress.subspace.starts import Starts, recognize
from subcompress.support.names import DEFAULT_ROLES as DEFAULT


@dataclass(frozen=True)
class Prepared:
    """A network with its initial values, a description of these, and its base."""

    module: nn.Module
    starts: Starts
    base: OnBase | None


def prepared(
    module: nn.Module | Callable[[], nn.Module],
    *,
    seed: int = 0,
    structured: str = "random",
    base: Any = None,
    base_name: str | None = None,
    act_on: str = DEFAULT,
    new: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> Prepared:
    """Recognize how a network starts; the options are those of `fit`. module: the network, or a factory of it. Raises
    SubcompressError."""
    module, build = built(module, seed)
    on_base = None
    if base is not None:
        on_base = attach_base(open_base(base, base_name), module, tuple(new))
        module = on_base.loaded(copied(module))  # it shares nothing: the caller may train the network too
    starts = recognize(module, structured, on_base, act_on, build=build, seed=seed, drop=tuple(drop))
    return Prepared(module, starts, on_base)


def measure_moves(
    module: nn.Module | Callable[[], nn.Module],
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    steps: int = STEPS,
    **options: Any,
) -> Moves:
    """Train a copy of a network directly for a few steps and measure how far each tensor moves, for `Subspace.of`.

    Args:
        module: The network, or a function without arguments that builds it.
        batches: Batches of the training split that can be iterated several times: a DataLoader or a list.
        loss: f(module, batch) -> scalar tensor.
        steps: Steps of training, at most.
        **options: Options that `Subspace.of` is given too: seed, structured, base, act_on and so on.

    Returns:
        The moves, to give to `Subspace.of`.

    Raises:
        SubcompressError: The network cannot be trained in this way.
    """
    known = prepared(module, **options)

    based, seed = known.base is not None, int(options.get("seed", 0))
    still = kept(known.module, known.starts.layout, known.starts.of(), ("kept",)) if based else frozenset()
    rates = BASED_RATES if based else RATES
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            examples = examples_of(lambda whole: itertools.repeat(batches))
            return measured(
                known.module,
                known.starts,
                examples,
                loss,
                seed=seed,
                steps=steps,
                rates=rates,
                based=based,
                still=still,
            )
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


__all__ = ["measure_moves"]

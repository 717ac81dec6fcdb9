"""The interface of a search: it returns trials to run, and receives their results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from subcompress.training.probe import Probe, training_key

Hopeless = Callable[[tuple[float, ...]], bool]
"""Decides whether to stop a training, by the metric after each of its epochs so far."""


@dataclass(frozen=True)
class Trial:
    """A training to run.

    Args:
        d: Coordinates, 0 for the network trained directly.
        seed: Its seed.
        short: Train for few epochs only, to see where to look.
        lr: The step of a direct training, None for the usual one.
        limit: The most bytes of the file; None if any size is allowed.
        room: The part of these bytes that the coordinates may take.
        rate: The price of a bit, None for the one of the recipe.
    """

    d: int
    seed: int
    short: bool = False
    lr: float | None = None
    limit: int | None = None
    room: int | None = None
    rate: float | None = None

    @property
    def key(self) -> str:
        """The name of the trial in the run folder."""
        step = "" if self.lr is None else f"-lr{self.lr:g}"
        named = training_key(self.d, self.seed, self.rate) if self.d else f"direct-s{self.seed}{step}"
        return named + ("-short" if self.short else "")


def trial_of(key: str) -> Trial | None:
    """The trial of that name, without its limits; None for the name of something else."""
    if found := re.fullmatch(r"d(\d+)-s(\d+)(?:-p([\d.e+-]+?))?(-short)?", key):
        rate = float(found[3]) if found[3] else None
        return Trial(int(found[1]), int(found[2]), found[4] is not None, rate=rate)
    if found := re.fullmatch(r"direct-s(\d+)(?:-lr(.+?))?(-short)?", key):
        return Trial(0, int(found[1]), found[3] is not None, float(found[2]) if found[2] else None)
    return None


class Engine(Protocol):
    """A search: decides what to train next from the results so far. Its decisions and its result depend on the trials
    alone, not on the workers that ran them."""

    def ask(self, running: Sequence[Trial]) -> Trial | None:
        """The next trial beside those that are running. None: wait for one of them, or, if none runs, the end."""

    def tell(self, trial: Trial, probe: Probe) -> None:
        """Take the result of a trial, also of one that was not asked for."""

    def hopeless(self, trial: Trial) -> Hopeless | None:
        """When to stop the trial, None for never."""

    def result(self) -> tuple[Probe, dict[str, Any]]:
        """The training to keep, and the fields of a Fit that tell of the search. Raises SubcompressError if no
        training made a file."""


__all__ = ["Engine", "Hopeless", "Trial", "trial_of"]

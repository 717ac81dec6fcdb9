"""Time in units that no machine changes much: how long plain Python takes for a fixed loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

ATTEMPTS = 4
"""Of a work that took too long: the shortest counts, as another process can only slow it down."""


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def _loop() -> None:
    total = 0
    for i in range(1_000_000):
        total += i & 3


@cache
def _unit() -> float:
    """Processor time of the loop, on a machine that is as busy as now."""
    return min(processor_seconds(_loop) for _ in range(3))


def takes_at_most(work: Callable[[], object], loops: float) -> bool:
    """Whether the work takes at most so many million steps of plain Python, about 0.07 seconds each on a server."""
    return any(processor_seconds(work) <= loops * _unit() for _ in range(ATTEMPTS))

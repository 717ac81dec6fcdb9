"""Which of several processes this one is, as torchrun says in the environment. Nothing here imports torch."""

from __future__ import annotations

import os


def workers() -> int:
    """Processes that were started for one training; 1 where nothing says so."""
    return max(1, _number("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process among them, from 0 on."""
    return _number("RANK", 0) if workers() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return _number("LOCAL_RANK", 0) if workers() > 1 else 0


def _number(name: str, default: int) -> int:
    said = os.environ.get(name, "")
    return int(said) if said.isdecimal() else default


__all__ = ["local_rank", "rank", "workers"]

"""The shards of a batch, and who runs them: here, one process runs all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from subcompress.errors import SubcompressError, ToldError

T = TypeVar("T")


class WorkerLostError(SubcompressError):
    """Another worker has ended, or does not answer."""


class NoCheckpoint:
    """The checkpoint of a worker that keeps none: the first one does."""

    def load(self, expected: Mapping[str, Any]) -> None:
        """Nothing."""

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Nothing."""


class Shards:
    """The parts that each batch is cut into. Here one process runs all of them; `workers.Workers` shares them.

    count: shards of a batch; workers: processes that share them; rank: the number of this process.
    """

    workers, rank = 1, 0

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.said = False
        """Whether the log has said what a step sends."""

    @property
    def first(self) -> bool:
        """Whether this worker writes the run folder, evaluates and prints."""
        return self.rank == 0

    @property
    def own(self) -> range:
        """The shards that this worker runs."""
        return range(self.rank, self.count, self.workers)

    def meet(self, device: torch.device) -> None:
        """Wait until every worker has read its data and built its network."""

    def alone(self, work: Callable[[], T], join: Callable[[Any], None] | None = None) -> T:
        """What `work` gives in the first worker, in each worker. It may take long. The others do `join(message)` for
        each block of `joined` that it enters. Raises what it raises; other workers raise a ToldError then."""
        return work()

    @contextmanager
    def joined(self, message: Any) -> Iterator[None]:
        """Within `alone`, in the first worker: a block that the others join, each by `join(message)`."""
        yield

    def together(self, work: Callable[[], T]) -> T:
        """`work` in each worker; where it raises in one, it raises in all."""
        return work()

    def check_same(self, what: str, value: str) -> None:
        """Raise SubcompressError unless each worker has the same value."""

    def largest(self, values: Tensor) -> Tensor:
        """The largest of all workers' values, place by place: (n,) int64."""
        return values

    def total(self, values: Tensor) -> Tensor:
        """The sum of all workers' values, place by place: (n,) int64, exact in any order."""
        return values

    def agree(self, error: Exception | None, someone: bool) -> None:
        """Raise the error, if there is one, or what another worker met. someone: whether a worker met an error, of
        which all know already."""
        if error is not None:
            raise error


__all__ = ["NoCheckpoint", "Shards", "ToldError", "WorkerLostError"]

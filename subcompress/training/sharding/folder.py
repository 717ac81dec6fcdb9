"""The run folder of a training that several workers share: the first one holds it, the others a stand-in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from subcompress.format.record import Record
from subcompress.training import run
from subcompress.training.run import Run
from subcompress.training.sharding.shards import Shards


class StandIn(Run):
    """A run folder in memory: it reads and writes nothing. Its journal is the first worker's."""

    def note(self, key: str, entry: dict[str, Any], record: Record | None = None) -> None:
        """Remember a training until the journal is the first worker's again."""
        self.journal[key] = entry

    def checkpoint(self, key: str) -> Any:
        """One that holds nothing."""
        return _Nowhere()

    def begin(self, restart: bool) -> bool:
        """Nothing to clear."""
        return False

    def finish(self, record: Record | None, summary: Any) -> None:
        """Nothing to write."""


class _Nowhere:
    """A checkpoint of the first worker's, which this one neither reads nor writes."""

    def load(self, expected: Mapping[str, Any]) -> None:
        """Nothing."""

    def save(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Nothing."""


@contextmanager
def held(shards: Shards, folder: str | Path, command: dict[str, Any]) -> Iterator[Run]:
    """`run.holding` in the first worker, a stand-in in the others. Raises SubcompressError."""
    with ExitStack() as stack:
        own: list[Run] = []
        shards.alone(lambda: own.append(stack.enter_context(run.holding(folder, command))))
        yield own[0] if own else StandIn(Path(folder), command)


__all__ = ["StandIn", "held"]

"""What an output format is, and what it may be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subcompress.errors import SubcompressError
from subcompress.format.record import Record

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Wanted:
    """What was asked of an output: see `unpack`. base: as it was given."""

    module: nn.Module | None = None
    dtype: str | None = None
    done: Callable[[int], None] | None = None
    shard_size: int | None = None
    rank: int | None = None
    files: str | Path | None = None
    base: Any = None

    def traced(self, record: Record) -> nn.Module:
        """The module to trace, with the record's weights. Raises SubcompressError without one."""
        if self.module is None:
            raise SubcompressError("the network is needed to trace an ONNX graph: give it with --model")
        from subcompress.api.load import load_record  # these import torch, and dense weights do not
        from subcompress.subspace.unwrapping import fitting

        return load_record(record, fitting(self.module, record.layout))


Write = Callable[[Record, Wanted, Path], dict[str, Any]]
"""Writes a record to an existing empty file or folder; returns what --json states in addition to the size."""


@dataclass(frozen=True)
class Format:
    """An output of `unpack`.

    suffix: that of the file that is written, empty for a folder; options: those of OPTIONS that it takes; default:
    whether the suffix alone chooses it.
    """

    name: str
    suffix: str
    write: Write
    options: tuple[str, ...] = ()
    default: bool = False


OPTIONS = {
    "dtype": "--dtype",
    "shard_size": "--shard-size",
    "rank": "--rank",
    "files": "--model hf:DIR",
}
"""Fields of `Wanted` that only some formats take -> how the command line calls them."""

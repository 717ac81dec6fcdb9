"""pack: a finished run as one file."""

from __future__ import annotations

from pathlib import Path

from subcompress import format
from subcompress.format.facts import Facts
from subcompress.subspace.module import Subspace
from subcompress.support.files import write_bytes
from subcompress.training import run


def pack(source: str | Path | Subspace, path: str | Path, facts: Facts | None = None) -> int:
    """Write the file of a run folder, or of a Subspace that was trained in a loop of the caller's own; whole or not at
    all. Returns its bytes. facts: what a receiver needs to know of the input, for a Subspace.

    Raises SubcompressError for a folder that is not a finished run, a Subspace that was not rounded, and a place that
    cannot be written.
    """
    if isinstance(source, Subspace):
        return format.save(source.record(facts), path)
    data = run.packed(source)
    format.parse(data)  # one that was damaged is not passed on
    write_bytes(path, data)
    return len(data)

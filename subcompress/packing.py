"""pack: a finished run as one file."""

from __future__ import annotations

from pathlib import Path

from subcompress import format, run


def pack(run_folder: str | Path, path: str | Path) -> int:
    """Write the file of a run, whole or not at all; returns its bytes.

    Raises SubcompressError for a folder that is not a finished run and a place that cannot be written.
    """
    return format.save(run.load(run_folder), path)

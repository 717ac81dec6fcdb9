"""The run folder: what fit leaves and pack takes. `run.json` is for people and scripts, `record.safetensors` for pack.

The record is held exactly as it will be packed, so that packing cannot differ from what was fitted.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from subcompress import format
from subcompress.errors import SubcompressError
from subcompress.files import write_bytes
from subcompress.record import Record

RECORD, SUMMARY = "record.safetensors", "run.json"


def prepare(folder: str | Path) -> Path:
    """Make the folder and see that it can be written, before hours are spent; a run that was there no longer counts
    as finished. Raises SubcompressError."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SubcompressError(f"the run folder {folder} cannot be made: {e.strerror}; give another with -o") from e
    write_bytes(folder / ".writable", b"")
    (folder / ".writable").unlink()
    (folder / SUMMARY).unlink(missing_ok=True)
    return folder


def write(folder: Path, record: Record, recipe: Any, summary: Any) -> None:
    """Write the record, then the summary that marks the run as finished."""
    format.save(record, folder / RECORD)
    text = json.dumps({"fit": asdict(summary), "recipe": asdict(recipe)}, indent=2, default=str)
    write_bytes(folder / SUMMARY, text.encode())


def load(folder: str | Path) -> Record:
    """The record of a finished run. Raises SubcompressError for a folder that is not one."""
    folder = Path(folder)
    if not os.path.isfile(folder / SUMMARY):  # false, not an error, for names no file can have
        raise SubcompressError(
            f"{folder} is not a finished run (it has no {SUMMARY}): make one with `subcompress fit -o {folder}`"
        )
    return format.read(folder / RECORD)[0]

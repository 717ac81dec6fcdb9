"""Dense weights in one safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subcompress.api.formats.base import Format, Wanted
from subcompress.format.record import Record
from subcompress.rebuild.dense import write_dense


def write(record: Record, wanted: Wanted, path: Path) -> dict[str, Any]:
    """Write the weights in bounded memory."""
    if wanted.module is not None:
        from subcompress.subspace.unwrapping import fitting  # which imports torch

        fitting(wanted.module, record.layout)
    write_dense(record, path, dtype=wanted.dtype, done=wanted.done)
    return {}


FORMAT = Format("safetensors", ".safetensors", write, ("dtype",), default=True)

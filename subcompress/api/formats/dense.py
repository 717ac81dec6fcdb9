"""Dense weights in one safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subcompress.api.formats.base import Format, Wanted
from subcompress.format.record import Record
from subcompress.rebuild.dense import write_dense
from subcompress.tensors.layout import Layout


def write(record: Record, wanted: Wanted, path: Path) -> dict[str, Any]:
    """Write the weights in bounded memory."""
    if wanted.module is not None:
        from subcompress.subspace.unwrapping import unwrapped_for  # which imports torch

        module = unwrapped_for(wanted.module, record.layout)
        record.layout.require(Layout.of(module.state_dict()), "the model")
    write_dense(record, path, dtype=wanted.dtype, done=wanted.done)
    return {}


FORMAT = Format("safetensors", ".safetensors", write, ("dtype",), default=True)

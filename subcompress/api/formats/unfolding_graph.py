"""An ONNX graph of a few kilobytes that computes its own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subcompress.api.formats.base import Format, Wanted
from subcompress.errors import SubcompressError
from subcompress.format.record import Record


def write(record: Record, wanted: Wanted, path: Path) -> dict[str, Any]:
    """Trace the network and write its graph. Raises SubcompressError for a record on a base."""
    if record.base is not None:
        raise SubcompressError(
            f"a self-unfolding graph holds no weights, and this one would hold the base {record.base.reference.where}: "
            "leave --self-unfolding out"
        )
    from subcompress.onnx import export_self_unfolding  # onnx is loaded only where it is needed

    export_self_unfolding(record, wanted.traced(record), path)
    return {}


FORMAT = Format("self-unfolding", ".onnx", write)

"""An ONNX graph with the weights inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subcompress.api.formats.base import Format, Wanted
from subcompress.format.record import Record


def write(record: Record, wanted: Wanted, path: Path) -> dict[str, Any]:
    """Trace the network and write its graph."""
    from subcompress.onnx import export  # onnx and onnxruntime are loaded only where they are needed

    export(record, wanted.traced(record), path)
    return {}


FORMAT = Format("onnx", ".onnx", write, default=True)

"""Writing dense weights of any size as a safetensors file, in bounded memory.

The safetensors library writes what is in memory; this writes the same bytes chunk by chunk, each at its offset.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.format.record import Record
from subcompress.rebuild.arrays import check_digest
from subcompress.rebuild.streaming import stream
from subcompress.tensors.digest import Chunk
from subcompress.tensors.layout import DTYPES, Layout, raw_bytes
from subcompress.tensors.rounding import rounded

ORDER = ("I64", "F64", "C64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""The order of dtypes in a safetensors file, the widest first, so that each tensor is aligned; within a dtype by
name."""

FLOATS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""The dtypes that floating-point tensors can be written as -> the name in the file."""


def write_dense(
    record: Record, path: Path, *, dtype: str | None = None, done: Callable[[int], None] | None = None
) -> None:
    """Write the record's weights to an existing file, and check them against its digest on the way.

    dtype: one of FLOATS, to which real floating-point tensors are rounded; done: see `stream`. Raises SubcompressError
    for an unknown dtype, for weights of another digest, and if the disk has too little space.
    """
    if dtype is not None and dtype not in FLOATS:
        raise SubcompressError(f"weights must be written as {', '.join(FLOATS)}; got {dtype}: give one of them")
    layout = record.layout
    written = layout if dtype is None else rounded_layout(layout, FLOATS[dtype])
    head, places = header(written)
    size = len(head) + written.nbytes
    if size > (free := shutil.disk_usage(path.parent).free):
        raise SubcompressError(f"the weights take {size} bytes, {path.parent} has {free} left: give another place")
    with path.open("r+b", buffering=0) as f:
        f.truncate(size)
        put = _writer(f)
        put(head, 0)

        def sink(chunk: Chunk, values: np.ndarray) -> None:
            spec, to = layout.tensors[chunk.index], written.tensors[chunk.index]
            at = len(head) + places[chunk.index] + chunk.at // DTYPES[spec.dtype].itemsize * DTYPES[to.dtype].itemsize
            put(raw_bytes(_rounded(values, DTYPES[to.real_dtype])), at)

        check_digest(record, stream(record, sink, done=done))


LARGE = 1 << 20
"""The fewest bytes that are flushed to the disk at once."""

PIECE = 1 << 15
"""The number of values that are rounded at a time, so that they fit into a core's cache."""


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if values.dtype == dtype:
        return values
    out = np.empty(len(values), dtype)
    for at in range(0, len(values), PIECE):
        out[at : at + PIECE] = rounded(values[at : at + PIECE], dtype)
    return out


def rounded_layout(layout: Layout, dtype: str) -> Layout:
    """Return the layout with another dtype for real floating-point tensors."""
    floats = ("F32", "F16", "BF16", "F64")
    return Layout(tuple(replace(s, dtype=dtype) if s.dtype in floats else s for s in layout))


def header(layout: Layout) -> tuple[bytes, list[int]]:
    """Return the safetensors header, and the offset of each tensor after it in the layout's order."""
    order = sorted(range(len(layout)), key=lambda i: (ORDER.index(layout.tensors[i].dtype), layout.tensors[i].name))
    places, at = [0] * len(layout), 0
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for i in order:
        spec = layout.tensors[i]
        places[i] = at
        at += spec.nbytes
        table[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [places[i], at]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def _writer(f: FileIO) -> Callable[[bytes | memoryview, int], None]:
    """Return a function that writes data at an offset of the file, from any thread; serialized if the system lacks
    pwrite."""
    lock = threading.Lock()

    def put(data: bytes | memoryview, at: int) -> None:
        view, begin = memoryview(data), at
        while view:
            if hasattr(os, "pwrite"):
                n = os.pwrite(f.fileno(), view, at)
            else:
                with lock:
                    f.seek(at)
                    n = f.write(view)
            view, at = view[n:], at + n
        if at - begin >= LARGE and hasattr(os, "posix_fadvise"):
            # Start writing these out now, so that the final fsync waits less.
            os.posix_fadvise(f.fileno(), begin, at - begin, os.POSIX_FADV_DONTNEED)

    return put

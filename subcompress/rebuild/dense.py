"""Writing dense weights of any size as safetensors files, in bounded memory.

The safetensors library writes what is in memory; this writes the same bytes chunk by chunk, each at its offset.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Part:
    """A file to write. path: an existing file; numbers: the tensors in it, by their numbers in the layout."""

    path: Path
    numbers: Sequence[int]


def write_dense(
    record: Record, path: Path, *, dtype: str | None = None, done: Callable[[int], None] | None = None
) -> None:
    """Write all of the record's weights to one existing file; see `write_parts`."""
    write_parts(record, [Part(path, range(len(record.layout)))], dtype=dtype, done=done)


def write_parts(
    record: Record, parts: Sequence[Part], *, dtype: str | None = None, done: Callable[[int], None] | None = None
) -> None:
    """Write the record's weights to existing files of one folder, and check them against its digest on the way.

    A tensor may be in no part: it is checked all the same. dtype: one of FLOATS, to which real floating-point tensors
    are rounded; done: see `stream`. Raises SubcompressError for an unknown dtype, for weights of another digest, and if
    the disk has too little space.
    """
    layout, written = record.layout, written_layout(record.layout, dtype)
    heads = [header(Layout(tuple(written.tensors[i] for i in part.numbers))) for part in parts]
    sizes = [
        len(head) + sum(written.tensors[i].nbytes for i in part.numbers)
        for part, (head, _) in zip(parts, heads, strict=True)
    ]
    _check_room(sum(sizes), parts[0].path.parent)
    places: dict[int, tuple[_Put, int]] = {}
    with ExitStack() as stack:
        files = [stack.enter_context(part.path.open("r+b", buffering=0)) for part in parts]
        for part, file, size, (head, offsets) in zip(parts, files, sizes, heads, strict=True):
            file.truncate(size)
            put = _writer(file)
            put(head, 0)
            places |= {i: (put, len(head) + at) for i, at in zip(part.numbers, offsets, strict=True)}

        def sink(chunk: Chunk, values: np.ndarray) -> None:
            if chunk.index in places:
                spec, to = layout.tensors[chunk.index], written.tensors[chunk.index]
                put, begin = places[chunk.index]
                at = begin + chunk.at // DTYPES[spec.dtype].itemsize * DTYPES[to.dtype].itemsize
                put(raw_bytes(_rounded(values, DTYPES[to.real_dtype])), at)

        check_digest(record, stream(record, sink, done=done))
        for file in files:
            os.fsync(file.fileno())


def _check_room(size: int, folder: Path) -> None:
    """Raise SubcompressError if the folder's disk has less room."""
    if size > (free := shutil.disk_usage(folder).free):
        raise SubcompressError(f"the weights take {size} bytes, but {folder} has only {free} left: give another place")


def written_layout(layout: Layout, dtype: str | None) -> Layout:
    """Return the layout as it is written with that dtype, one of FLOATS or None. Raises SubcompressError."""
    if dtype is not None and dtype not in FLOATS:
        raise SubcompressError(f"weights must be written as {', '.join(FLOATS)}; got {dtype}: give one of them")
    return layout if dtype is None else rounded_layout(layout, FLOATS[dtype])


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


_Put = Callable[["bytes | memoryview", int], None]
"""Writes data at an offset of a file, from any thread."""


def _writer(f: FileIO) -> _Put:
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

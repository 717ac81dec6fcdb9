"""A safetensors file as arrays that lie in the file itself: mapped, not read."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from subcompress.errors import SubcompressError, one_line
from subcompress.tensors.layout import DTYPES


def map_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, in the file's order: those of the format's dtypes, BF16 as uint16; and the dtypes of the others.
    What is written to them stays in this process. Raises SubcompressError for what is no safetensors file."""
    try:
        with safetensors.safe_open(path, "np"):  # the library checks sizes, offsets and names
            pass
        with path.open("rb") as f:
            data = _File(f.fileno(), 0, access=mmap.ACCESS_COPY)
            data.path = path
        size = int.from_bytes(data[:8], "little")
        table = json.loads(data[8 : 8 + size])
        table.pop("__metadata__", None)
        others = {name: str(entry["dtype"]) for name, entry in table.items() if entry["dtype"] not in DTYPES}
        return {n: _array(data, 8 + size, **entry) for n, entry in table.items() if n not in others}, others
    # The last of them where the file was written over since the library looked.
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as e:
        raise SubcompressError(
            f"a base is a safetensors file or a torch state dict; {path} is neither: {one_line(e, 160)}"
        ) from e


def file_location(array: np.ndarray) -> tuple[Path, int] | None:
    """The file that a mapped array lies in, and its first byte there; None for one that lies elsewhere."""
    file = _file_of(array)
    if file is None or not array.flags.c_contiguous:
        return None
    return file.path, array.ctypes.data - np.frombuffer(file, np.uint8, 1).ctypes.data


def release_pages(array: np.ndarray) -> None:
    """Give back the memory that the file of a mapped array takes: it is read again where it is used again."""
    file = _file_of(array)
    if file is not None and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


class _File(mmap.mmap):
    """A mapped file that knows which."""

    path: Path


def _file_of(array: np.ndarray) -> _File | None:
    held: Any = array
    while isinstance(held, (np.ndarray, memoryview)):
        held = held.base if isinstance(held, np.ndarray) else held.obj
    return held if isinstance(held, _File) else None


def _array(data: mmap.mmap, begin: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    kind, (first, last) = DTYPES[dtype], data_offsets
    array = np.frombuffer(data, kind, (last - first) // kind.itemsize, begin + first).reshape(shape)
    return array if array.flags.aligned else array.copy()

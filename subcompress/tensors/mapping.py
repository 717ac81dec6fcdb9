"""Memory-mapped safetensors files: arrays that are views of the file."""

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
    """Map a safetensors file: its arrays by name, in file order, and the dtypes of tensors that are left out.

    BF16 arrays are uint16. Tensors of dtypes outside the format are left out. Writes to the arrays stay in this
    process. Raises SubcompressError if this is no safetensors file.
    """
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
        return {n: _view(data, 8 + size, **entry) for n, entry in table.items() if n not in others}, others
    # The last three: the file was overwritten after the library checked it.
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as e:
        raise SubcompressError(
            f"{path} is neither a safetensors file nor a torch state dict: {one_line(e, 160)}"
        ) from e


def file_location(array: np.ndarray) -> tuple[Path, int] | None:
    """Return the file and the offset of a mapped array in it; None for other arrays."""
    file = _mapped_file(array)
    if file is None or not array.flags.c_contiguous:
        return None
    return file.path, array.ctypes.data - np.frombuffer(file, np.uint8, 1).ctypes.data


def release_pages(array: np.ndarray) -> None:
    """Release the memory pages of a mapped array's file; they are read again on the next access."""
    file = _mapped_file(array)
    if file is not None and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def release_part(data: np.ndarray | memoryview) -> None:
    """Release the memory pages that a part of a mapped array lies in; they are read again on the next access. Nothing
    for other memory."""
    file = _mapped_file(data)
    if file is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    part = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else data
    if part.nbytes and part.flags.c_contiguous:
        at = part.ctypes.data - np.frombuffer(file, np.uint8, 1).ctypes.data
        first = at // mmap.PAGESIZE * mmap.PAGESIZE
        file.madvise(mmap.MADV_DONTNEED, first, at + part.nbytes - first)


class _File(mmap.mmap):
    """A memory-mapped file that knows its path."""

    path: Path


def _mapped_file(array: np.ndarray | memoryview) -> _File | None:
    owner: Any = array
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner if isinstance(owner, _File) else None


def _view(data: mmap.mmap, begin: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    kind, (first, last) = DTYPES[dtype], data_offsets
    array = np.frombuffer(data, kind, (last - first) // kind.itemsize, begin + first).reshape(shape)
    return array if array.flags.aligned else array.copy()

"""A safetensors file as arrays that lie in the file itself: mapped, not read."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np
import safetensors

from subcompress.errors import SubcompressError, one_line
from subcompress.layout import DTYPES


def mapped(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, in the file's order: those of the format's dtypes, BF16 as uint16. What is written to them stays
    in this process. Raises SubcompressError for what is no safetensors file."""
    try:
        with safetensors.safe_open(path, "np"):  # the library checks sizes, offsets and names
            pass
        with path.open("rb") as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
        size = int.from_bytes(data[:8], "little")
        table = json.loads(data[8 : 8 + size])
        table.pop("__metadata__", None)
        return {name: _array(data, 8 + size, **entry) for name, entry in table.items() if entry["dtype"] in DTYPES}
    # The last of them where the file was written over since the library looked.
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as e:
        raise SubcompressError(
            f"a base is a safetensors file or a torch state dict; {path} is neither: {one_line(e, 160)}"
        ) from e


def _array(data: mmap.mmap, begin: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    kind, (first, last) = DTYPES[dtype], data_offsets
    array = np.frombuffer(data, kind, (last - first) // kind.itemsize, begin + first).reshape(shape)
    return array if array.flags.aligned else array.copy()

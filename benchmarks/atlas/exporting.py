"""Whether a packed file becomes ONNX, and what of it computes its own weights."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

import subcompress
from subcompress import SubcompressError
from subcompress.errors import one_line

LONGEST = 140
"""Characters of a reason in the table."""


def exported(packed: Path, module: nn.Module, folder: Path) -> str:
    """`self-unfolding, N bytes`; or `plain, N bytes; not unfolding: why`; or `no: why`."""
    whys = []
    for kind in ("self-unfolding", "onnx"):
        path = folder / f"{kind}.onnx"
        try:
            subcompress.unpack(packed, path, copy.deepcopy(module), format=kind)
        except SubcompressError as e:
            whys.append(one_line(e, LONGEST))
            continue
        size = f"{path.stat().st_size:,} bytes"
        return f"self-unfolding, {size}" if not whys else f"plain, {size}; not unfolding: {whys[0]}"
    return f"no: {whys[-1]}"

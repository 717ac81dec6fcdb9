"""NumPy: int32 additions and one float32 rounding a weight. The plainest reading of the format."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from subcompress.backends.walk import Rows, entries
from subcompress.layout import TensorSpec
from subcompress.record import Coded, Record


def tensors(record: Record) -> Iterator[tuple[TensorSpec, Tensor]]:
    """Every tensor of the record, in layout order."""
    rows = [Rows(g.operator, g.coordinates) for g in record.groups]
    for spec, entry in entries(record):
        yield spec, _coded(rows[entry.group], spec, entry) if isinstance(entry, Coded) else entry


def _coded(rows: Rows, spec: TensorSpec, entry: Coded) -> Tensor:
    theta = np.empty(spec.reals, np.float32)
    for place, w in rows.take(spec.reals):
        theta[place] = np.float32(entry.start) + np.float32(entry.scale) * w.astype(np.float32)
    if spec.dtype == "BF16":
        bits = theta.view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return torch.from_numpy(rounded).view(torch.bfloat16).reshape(spec.shape)
    if spec.dtype == "C64":
        return torch.from_numpy(theta.view(np.complex64)).reshape(spec.shape)
    numpy_dtype = {"F32": np.float32, "F16": np.float16, "F64": np.float64}[spec.dtype]
    return torch.from_numpy(theta.astype(numpy_dtype)).reshape(spec.shape)

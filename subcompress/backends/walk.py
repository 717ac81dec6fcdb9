"""The walk every backend takes through a record: tensor by tensor, a bounded number of weights at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from subcompress.layout import TensorSpec
from subcompress.record import Coded, Record

CHUNK = 1 << 18
"""Weights expanded at a time: what a core's cache holds."""


def entries(record: Record) -> Iterator[tuple[TensorSpec, Coded | Tensor, int]]:
    """Each tensor's spec, its entry, or its values where they are stored, and the first of its rows in its group."""
    offsets = [0] * len(record.groups)
    at = 0
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Coded):
            yield spec, entry, offsets[entry.group]
            offsets[entry.group] += spec.size
        else:
            raw = np.frombuffer(record.stored, np.uint8, spec.nbytes, at).copy()
            yield spec, torch.from_numpy(raw).view(spec.torch_dtype).reshape(spec.shape), 0
            at += spec.nbytes


def chunks(size: int, first: int, m: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Cut rows [first, first + size) at multiples of m: pairs (lo, hi)."""
    lo, end = first, first + size
    while lo < end:
        hi = min((lo // m + 1) * m, end)
        yield lo, hi
        lo = hi

"""Buffers that training moves (running statistics) as integers of a few bits, one by one: a byte where a float takes
four. What cannot be rounded so without harm is stored as it is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from subcompress.format.record import MAX_SCALE_EXPONENT, MIN_SCALE_EXPONENT, STATISTICS_BITS, Coded, Group, bfloat16
from subcompress.operators import HadamardBlocks
from subcompress.tensors.layout import Layout

BITS = range(STATISTICS_BITS, 13)
"""Precisions tried, fewest first: 12 is the most that the coder takes."""

HARM = 0.02
"""Values of one sign (variances) may be off by this share of themselves, others by it of their median size."""


def coded_buffers(
    layout: Layout, moved: Mapping[str, Tensor], seed: int, first: int
) -> tuple[list[Group], dict[str, Coded]]:
    """Groups numbered from `first`, one a precision, and the entries of the buffers they hold."""
    by_bits: dict[int, list[tuple[str, np.ndarray, Coded]]] = {}
    for spec in layout:
        if spec.name in moved and spec.dtype in ("F32", "F16", "BF16", "F64") and spec.size:
            x = moved[spec.name].detach().double().cpu().numpy().reshape(-1)
            for bits in BITS:
                if (found := _rounded(x, bits)) is not None:
                    by_bits.setdefault(bits, []).append((spec.name, *found))
                    break
    groups: list[Group] = []
    entries: dict[str, Coded] = {}
    for bits, tensors in sorted(by_bits.items()):
        number = first + len(groups)
        order = {spec.name: i for i, spec in enumerate(layout)}
        tensors.sort(key=lambda t: order[t[0]])
        integers = np.concatenate([c for _, c, _ in tensors])
        n = len(integers)
        operator = HadamardBlocks(n, n, seed, 0, 0, 0, number)  # blocks of one row: value i is +-coordinate i
        signs = operator.rows(np.ones(n, np.int32), 0, n)
        groups.append(Group(operator, bits, (integers * signs).astype(np.int32)))
        entries |= {name: Coded(e.scale, number, e.start) for name, _, e in tensors}
    return groups, entries


def _rounded(x: np.ndarray, bits: int) -> tuple[np.ndarray, Coded] | None:
    """Integers, their scale and start; None if that loses too much."""
    if (x == np.round(x)).all():
        return None  # counts stay exact
    top = (1 << (bits - 1)) - 1
    low, high = float(x.min()), float(x.max())
    start = float(np.float32((low + high) / 2))
    if abs(start) < 2.0**-126:
        start = 0.0
    reach = max(high - start, start - low)
    scale = bfloat16(max(reach / top, 2.0**MIN_SCALE_EXPONENT))
    if scale * top < reach:
        scale = bfloat16(scale * (1 + 2.0**-7))
    if not np.isfinite(reach) or scale >= 2.0 ** (MAX_SCALE_EXPONENT + 1):
        return None
    c = np.clip(np.round((x - start) / scale), -top, top).astype(np.int64)
    error = np.abs(start + scale * c - x)
    allowed = HARM * np.abs(x) if low * high > 0 else HARM * np.full_like(x, float(np.median(np.abs(x))))
    if (error > allowed).any() and scale > 2.0**MIN_SCALE_EXPONENT:
        return None
    return c, Coded(scale, 0, start)


__all__ = ["coded_buffers"]

"""Conversion between floating-point dtypes with the same bits in every library and at every place of an array."""

from __future__ import annotations

import numpy as np

from subcompress.tensors.layout import DTYPES

TINY = 2.0**-126
"""Smaller sums of a base and what is added become zero, before and after: some machines flush subnormal numbers, some
do not."""

_BF16 = DTYPES["BF16"]


def rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert F32, F16, BF16 or F64 values to another of these dtypes, rounding to nearest, ties to even.

    float64 is converted by way of float32, and every nan becomes the same bit pattern. Values that already have the
    dtype are returned as they are.
    """
    if values.dtype == dtype:
        return values
    shape, values = values.shape, values.reshape(-1)
    if values.dtype == _BF16:
        wide = (values.astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(over="ignore", under="ignore"):  # what float32 cannot hold is infinite, or zero
            wide = values.astype(np.float32)
    bad = np.isnan(wide)
    if dtype == _BF16:
        bits = wide.view(np.uint32)
        out = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            out = wide.astype(dtype, copy=False)
    if bad.any():
        out[bad] = 0x7FC0 if dtype == _BF16 else np.nan
    return out.reshape(shape)


def finite(values: np.ndarray) -> bool:
    """Return whether all floating-point values are finite."""
    return bool(np.isfinite(rounded(values, DTYPES["F32"]) if values.dtype == _BF16 else values).all())

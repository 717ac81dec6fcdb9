"""Operators as matrices, and coordinates for them."""

from __future__ import annotations

import numpy as np
import torch

from subcompress.operators import HadamardBlocks, ScatteredBlocks
from subcompress.operators.dense import DenseGaussian

BLOCKS = [HadamardBlocks, ScatteredBlocks]


def dense(op, every: int = 1) -> torch.Tensor:
    """P, (D, d) float64, a column at a time; or every so many columns of it. Dense gives its rows: a product with each
    column would read all of P."""
    if isinstance(op, DenseGaussian):
        return op.rows(0, op.D)[:, ::every].double()
    return torch.stack([op.matvec(e) for e in torch.eye(op.d, dtype=torch.float64)[::every]], 1)


def coordinates(d: int, top: int = 7) -> np.ndarray:
    return np.random.default_rng(d).integers(-top, top + 1, d).astype(np.int32)

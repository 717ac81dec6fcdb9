"""Directions of a matrix itself, in integers: about its first singular vectors, the same bits on every machine.

A matrix is rounded to integers of 15 bits, multiplied by random signs and by itself, as in a randomized singular value
decomposition (Halko, Martinsson, Tropp 2011, arXiv:0909.4061), with a Gram-Schmidt process after each product
(docs/FORMAT.md, section 15). All products are of integers and exact: those of matrices stay within 2^53, where float64
holds every integer, so that a library may add them up in any order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from subcompress.operators import philox
from subcompress.tensors.layout import DTYPES
from subcompress.tensors.rounding import TINY, rounded

SIGNS = 514
"""The stream of the random signs, under key 0: directions are the matrix's own, whatever the file's seed."""

MATRIX_BITS, VECTOR_BITS = 15, 20
"""Bits of the integers of a matrix, and of those of a vector."""

MAX_SIDE = 1 << 18
"""The most rows and columns: sums of as many products of such integers stay within 2^53."""

ITERATIONS = 2
"""Times that a matrix and its transpose are applied, after the first product."""

BLOCK = 1 << 20
"""Values of a matrix that are integers at a time."""


def directions(values: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return U (rows, rank) and V (rank, columns), float32, whose columns and rows are nearly orthonormal, or zero.

    values: (rows, columns), finite, of a floating-point dtype of the format; neither side above MAX_SIDE.
    """
    matrix = _Integers(values)
    columns = values.shape[1]
    signs = philox.bits(0, SIGNS, 0, columns * rank).reshape(columns, rank)
    left = orthogonal(matrix.times(1.0 - 2.0 * signs))
    right = orthogonal(matrix.transposed_times(left))
    for _ in range(ITERATIONS):
        left = orthogonal(matrix.times(right))
        right = orthogonal(matrix.transposed_times(left))
    return _normalized(left), np.ascontiguousarray(_normalized(right).T)


class _Integers:
    """A matrix as integers below 2^15, made block by block."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.step = max(1, BLOCK // max(1, values.shape[1]))
        largest = max((float(np.abs(block).max(initial=0.0)) for _, block in self._wide()), default=0.0)
        # The largest value becomes one of [2^14, 2^15): a power of two that may be beyond float64 is applied in halves.
        self.exponent = MATRIX_BITS - int(np.frexp(largest)[1]) if largest else 0

    def _wide(self) -> Iterator[tuple[slice, np.ndarray]]:
        for first in range(0, len(self.values), self.step):
            rows = slice(first, first + self.step)
            block = self.values[rows]
            if block.dtype != np.float64:
                single = rounded(block, DTYPES["F32"])
                block = np.where(np.abs(single) >= TINY, single, np.float32(0)).astype(np.float64)
            yield rows, block

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for rows, wide in self._wide():
            yield rows, np.rint(np.ldexp(wide, self.exponent))

    def times(self, x: np.ndarray) -> np.ndarray:
        """Return the product with x (columns, rank), integers, as int64."""
        out = np.empty((len(self.values), x.shape[1]), np.int64)
        for rows, block in self._blocks():
            out[rows] = block @ x.astype(np.float64)
        return out

    def transposed_times(self, x: np.ndarray) -> np.ndarray:
        """Return the product of the transpose with x (rows, rank), integers, as int64."""
        out = np.zeros((self.values.shape[1], x.shape[1]))
        for rows, block in self._blocks():
            out += block.T @ x[rows].astype(np.float64)
        return out.astype(np.int64)


def orthogonal(x: np.ndarray) -> np.ndarray:
    """Return integer columns of VECTOR_BITS bits that span about what those of x span, (n, rank) int64, and are nearly
    orthogonal; what is zero stays zero."""
    found = np.zeros_like(x)
    sizes: list[int] = []
    for q in range(x.shape[1]):
        column = _scaled(x[:, q])
        for _ in range(2):  # the second time takes what the first one has left by rounding
            for p, size in enumerate(sizes):
                if size:
                    share = (int(column @ found[:, p]) << VECTOR_BITS) // size
                    column = ((column << VECTOR_BITS) - share * found[:, p]) >> VECTOR_BITS
            column = _scaled(column)
        found[:, q] = column
        sizes.append(int(column @ column))
    return found


def _scaled(column: np.ndarray) -> np.ndarray:
    """Return the integers, shifted so that the largest has VECTOR_BITS bits; those of zero as they are."""
    shift = VECTOR_BITS - int(np.abs(column).max(initial=0)).bit_length()
    if not column.any():
        return column
    return np.asarray(column << shift if shift >= 0 else column >> -shift)


def _normalized(x: np.ndarray) -> np.ndarray:
    """Return each column divided by its length, as float32; columns of zeros as they are."""
    sizes = np.square(x).sum(0).astype(np.float64)
    lengths = np.sqrt(np.where(sizes > 0, sizes, 1.0))
    return np.asarray((x.astype(np.float64) / lengths).astype(np.float32))


__all__ = ["MAX_SIDE", "directions", "orthogonal"]

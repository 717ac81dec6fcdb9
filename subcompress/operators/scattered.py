"""Signed Hadamard blocks with scattered columns: exact on integers (docs/FORMAT.md, section 9).

    w_b = H_m diag(s_b) E c_b,    E: slot j stands in column (f j + o) mod m, f odd, f and o from the seed

It is operator 1 but for E. Columns of lowest sequency make neighboring weights alike, which is right where inputs are
images. Where neighboring inputs have nothing in common it only makes weights alike that must differ: there columns of
every sequency do better (an identity-started 16 x 16 layer learns a matrix that is not smooth, and so does nearly every
layer of an MLP on vectors). An odd factor makes the map a permutation of the columns, whose inverse is affine too.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from subcompress import philox
from subcompress.operators.hadamard import HadamardBlocks


class ScatteredBlocks(HadamardBlocks):
    """See `HadamardBlocks`, from which it differs in `columns` alone."""

    code: ClassVar[int] = 2
    name: ClassVar[str] = "scattered"

    @property
    def affine_map(self) -> tuple[int, int]:
        """f and o, below 2^32: slot j stands in column (f j + o) mod m."""
        words = philox.words(self.seed, 2 * self.group + 1, np.arange(1, dtype=np.int64))[0, :2].tolist()
        return words[0] | 1, words[1]

    @cached_property
    def columns(self) -> np.ndarray:
        """The column of each used slot, frozen ones first, (K + used,) int64."""
        factor, offset = self.affine_map
        return (factor * np.arange(self.K + self.used, dtype=np.int64) + offset) % self.m

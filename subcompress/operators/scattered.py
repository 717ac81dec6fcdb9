"""Signed Hadamard blocks with scattered columns: exact on integers (docs/FORMAT.md, section 9).

    w_b = H_m diag(s_b) E c_b,    E: slot j stands in column h(j), h a seeded permutation of 0 .. m - 1

It is operator 1 except for E. Columns of lowest sequency make neighboring weights alike, which is right where inputs
are images. Where neighboring inputs have nothing in common it only makes weights alike that must differ: there columns
of every sequency do better (an identity-started 16 x 16 layer learns a matrix that is not smooth, and so does nearly
every layer of an MLP on vectors). h multiplies by an odd number and adds another; then, twice, it mixes the high bits
into the low ones and multiplies again: rows of a block are as little alike as with columns drawn at random, and the
inverse is as short.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from subcompress.operators import philox
from subcompress.operators.hadamard import HadamardBlocks


class ScatteredBlocks(HadamardBlocks):
    """See `HadamardBlocks`, from which it differs in `columns` alone."""

    code: ClassVar[int] = 2
    name: ClassVar[str] = "scattered"

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        """The four words, below 2^32, that the permutation is made of; the first and the last two are odd."""
        words = philox.words(self.seed, 2 * self.group + 1, np.arange(1, dtype=np.int64))[0, :4].tolist()
        return words[0] | 1, words[1], words[2] | 1, words[3] | 1

    @property
    def shift(self) -> int:
        """How far the high bits of a column are moved when they are mixed into the low ones."""
        return (self.log2_m + 1) // 2

    @cached_property
    def columns(self) -> np.ndarray:
        """The column of each used slot, frozen ones first, (K + used,) int64."""
        factor, offset, *factors = self.numbers
        found = (factor * np.arange(self.K + self.used, dtype=np.int64) + offset) % self.m
        for f in factors:
            found = (found ^ found >> self.shift) * f % self.m
        return found

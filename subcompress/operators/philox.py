"""Philox4x32-10, the only source of randomness: word i of stream s under a key is a pure function of (key, s, i).

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants and test vectors of
Random123 (github.com/DEShawResearch/random123). Counter-based: no state, so any slice equals the same part of the
whole, on any device, for any number of threads or chunks.

The same expressions serve NumPy and torch. Both hold 32-bit words in int64: a product of two words may pass 2^63, but
wraps without losing its low 64 bits, and masking after the shift drops the sign that an arithmetic shift drags in.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

MASK32 = 0xFFFFFFFF
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
"""The numbers that a round adds to the key."""


def _mulhilo(a: Any, m: int) -> tuple[Any, Any]:
    p = a * m
    return (p >> 32) & MASK32, p & MASK32


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Ten rounds over four words a counter; words are int64 arrays (NumPy or torch) with values below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mulhilo(c0, MULTIPLIERS[0])
        hi1, lo1 = _mulhilo(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return c0, c1, c2, c3


def words(seed: int, stream: int, quads: Any, xp: ModuleType = np) -> Any:
    """Words 4q..4q+3 of a stream for every q in `quads`: (...,) int64 -> (..., 4) int64 below 2^32.

    seed: 0 <= seed < 2^64, the key (low word first); stream: below 2^32; xp: `numpy` or `torch`, as `quads` is.
    Counter = (q mod 2^32, q >> 32, stream, 0).
    """
    zero = quads * 0
    counter = (quads & MASK32, (quads >> 32) & MASK32, zero + stream, zero)
    return xp.stack(philox4x32(counter, (seed & MASK32, seed >> 32)), -1)


def bits(seed: int, stream: int, start: int, count: int) -> np.ndarray:
    """Bits [start, start + count) of a stream as uint8 zeros and ones; bit n is bit n mod 32 of word n // 32."""
    first, last = start // 128, -(-(start + count) // 128)
    w = words(seed, stream, np.arange(first, last, dtype=np.int64)).astype("<u4")
    flat = np.unpackbits(w.reshape(-1).view(np.uint8), bitorder="little")
    return flat[start - first * 128 :][:count]

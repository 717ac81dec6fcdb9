"""Sizes and kernels that tests compare."""

from __future__ import annotations

import pytest

from subcompress.native import compiled
from subcompress.operators import EXACT

VECTORS = compiled.available_kinds()


# D, d, log2 m, K, A: windows, cut and single blocks, blocks of 1 to 2^16 rows, more rows than weights, whole tiles.
OPERATORS = [
    (50, 5, 3, 2, 5),
    (37, 30, 4, 0, 0),
    (21, 9, 6, 16, 3),
    (40, 35, 3, 1, 1),
    (999, 999, 0, 0, 0),
    (3_000, 7, 0, 0, 0),
    (5_003, 700, 7, 16, 1),
    (9_999, 100, 8, 16, 1_000),
    (10_000, 2_000, 9, 12, 7),
    (12_345, 300, 10, 16, 1),
    (70_000, 1_500, 12, 16, 1),
    (40_000, 5_000, 14, 16, 1),
    (100_000, 60_000, 16, 100, 1),
]


KINDS = list(EXACT.values())


needs_native = pytest.mark.skipif(compiled.library() is None, reason="the package was built without a C compiler")

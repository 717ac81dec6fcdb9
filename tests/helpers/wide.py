"""A record of more weights than a block."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from subcompress.format.record import Coded, Group, Record, Stored, Tied
from subcompress.operators import HadamardBlocks
from subcompress.rebuild.expand import digest_of, expand
from subcompress.tensors.layout import DTYPES, Layout, TensorSpec


def wide_record() -> Record:
    """Tensors of every dtype, of more than one chunk, small ones between them, a tied one, two groups."""
    coded = [("a", "F32", 1_300_001), ("b", "F16", 7), ("c", "C64", 600_001), ("d", "F64", 3), ("e", "BF16", 2_200_000)]
    kept = [(f"s{dtype}", dtype, 5) for dtype in DTYPES]
    layout = Layout(
        tuple(TensorSpec(n, t, (size,)) for n, t, size in [*coded, *kept, ("none", "F32", 0), ("z", "F32", 1_300_001)])
    )
    entries = [Coded(2.0**-7, i % 2, float(i)) for i in range(5)] + [Stored()] * (len(kept) + 1) + [Tied(0)]
    sizes = [sum(layout.tensors[i].reals for i in range(5) if i % 2 == g) for g in range(2)]
    groups = [
        Group(HadamardBlocks.sized(D, d, 5, group=g), 4, np.arange(d, dtype=np.int32) % 15 - 7)
        for g, (D, d) in enumerate(zip(sizes, (300, 6), strict=True))
    ]
    raw = np.random.default_rng(0).integers(0, 2, sum(layout.tensors[i].nbytes for i in range(5, 17)), np.uint8)
    record = Record(5, layout, tuple(groups), tuple(entries), raw.tobytes())
    record.check()
    return replace(record, digest=digest_of(record, expand(record, "numpy")))


WIDE = wide_record()

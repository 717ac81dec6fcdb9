"""A record so large that graphs unfold it in stages."""

from __future__ import annotations

import numpy as np

from subcompress.format.record import Coded, Group, Record
from subcompress.operators import HadamardBlocks
from subcompress.tensors.layout import Layout, TensorSpec


def staged_record(kind: type[HadamardBlocks] = HadamardBlocks, d: int = 700) -> Record:
    """1.5 million weights shared among two tensors, and a group of statistics one by one."""
    rng = np.random.default_rng(5)
    shapes = {"a": (1000, 1400), "b": (70_001,), "c": (9,)}
    layout = Layout(tuple(TensorSpec(name, "F32", shape) for name, shape in shapes.items()))
    groups = (
        Group(kind.sized(1_470_001, d, 3), 4, rng.integers(-8, 8, d).astype(np.int32)),
        Group(HadamardBlocks(9, 9, 3, 0, 0, 0, group=1), 12, rng.integers(-2048, 2048, 9).astype(np.int32)),
    )
    return Record(3, layout, groups, (Coded(2.0**-8), Coded(2.0**-7, start=1.0), Coded(2.0**-4, group=1)))

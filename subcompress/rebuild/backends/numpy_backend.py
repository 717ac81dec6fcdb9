"""The NumPy backend: int32 additions and one float32 rounding per weight, the plainest reading of the format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subcompress.operators import ExactOperator
from subcompress.operators.kernels import Segment
from subcompress.rebuild.backends.base import Backend, pieces
from subcompress.rebuild.backends.memory import HOST
from subcompress.tensors.layout import array_of
from subcompress.tensors.rounding import rounded

if TYPE_CHECKING:
    from torch import Tensor


def fill(operator: ExactOperator, c: np.ndarray | Tensor, segments: Sequence[Segment]) -> None:
    """Compute weights: start + scale * integer, rounded once."""
    for s, place, w in pieces(operator, array_of(c), segments):
        start = s.start[place] if isinstance(s.start, np.ndarray) else np.float32(s.start)
        theta = start + np.float32(s.scale) * w.astype(np.float32)
        out = array_of(s.out)[place]
        out[:] = rounded(theta, out.dtype)


BACKEND = Backend("cpu", HOST, fill, lambda: True, concurrent=True)

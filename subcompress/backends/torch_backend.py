"""torch on any device: float64 products of small Hadamard factors, exact for the format's integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subcompress.backends.base import Backend, pieces
from subcompress.kernels import Segment
from subcompress.operators import ExactOperator


def on(device: str) -> Backend:
    """The backend for that device."""
    return Backend(device, fill, lambda: device == "cpu" or torch.cuda.is_available())


@torch.no_grad()
def fill(operator: ExactOperator, c: Tensor, segments: Sequence[Segment]) -> None:
    """Weights on the device of c."""
    for s, place, w in pieces(operator, c, segments):
        # scale * w is exact in float32, so the one rounding is the sum's, fused or not.
        s.out[place] = (w * s.scale).add_(s.start)

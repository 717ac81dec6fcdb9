"""The torch backend, for any device: float64 products of small Hadamard factors, exact for the format's integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subcompress.operators import ExactOperator
from subcompress.operators.kernels import Segment
from subcompress.rebuild.backends.base import Backend, pieces
from subcompress.rebuild.backends.memory import Device
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def on(device: str) -> Backend:
    """Return the backend for a device."""
    return Backend(device, Device(device), fill, lambda: device == "cpu" or torch.cuda.is_available())


def fill(operator: ExactOperator, c: Tensor, segments: Sequence[Segment]) -> None:
    """Compute weights on the device of c."""
    with torch.no_grad():
        for s, place, w in pieces(operator, c, segments):
            # scale * w is exact in float32, so the one rounding is the sum's, fused or not.
            s.out[place] = (w * s.scale).add_(s.start)

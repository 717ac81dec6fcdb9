"""NumPy: int32 additions and one float32 rounding a weight. The plainest reading of the format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from subcompress.backends.base import Backend, pieces
from subcompress.kernels import Segment
from subcompress.operators import ExactOperator


def fill(operator: ExactOperator, c: Tensor, segments: Sequence[Segment]) -> None:
    """Weights of constant starts."""
    for s, place, w in pieces(operator, c.numpy(), segments):
        theta = np.float32(s.start) + np.float32(s.scale) * w.astype(np.float32)
        out = s.out[place]
        if out.dtype == torch.bfloat16:
            bits = theta.view(np.uint32)
            out.view(torch.int16).numpy()[:] = (
                ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.int16)
            )
        else:
            with np.errstate(over="ignore"):  # what float16 cannot hold is infinite in it
                out.numpy()[:] = theta


BACKEND = Backend("cpu", fill, lambda: True, beside=True)

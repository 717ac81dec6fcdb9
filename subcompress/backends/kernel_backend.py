"""The kernels of subcompress.kernels, and torch for what they do not serve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subcompress import kernels
from subcompress.backends import torch_backend
from subcompress.backends.base import Backend
from subcompress.kernels import Segment
from subcompress.operators import ExactOperator, HadamardBlocks


@torch.no_grad()
def fill(operator: ExactOperator, c: Tensor, segments: Sequence[Segment]) -> None:
    """Weights on the device of c."""
    fast = kernels.kernel(c.device, operator, False) if isinstance(operator, HadamardBlocks) else None
    (torch_backend if fast is None else fast).fill(operator, c, segments)


_SMALL = HadamardBlocks.sized(10_000, 100, 0)
"""What decides whether a backend is there."""

NATIVE = Backend("cpu", fill, lambda: kernels.on_cpu() is not None, beside=True)
TRITON = Backend("cuda", fill, lambda: kernels.on_cuda(_SMALL, False, torch.device("cuda")) is not None)

"""The kernels of subcompress.kernels, and NumPy or torch for what they do not serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subcompress import kernels
from subcompress.backends import numpy_backend, torch_backend
from subcompress.backends.base import Backend
from subcompress.backends.memory import HOST, Device
from subcompress.kernels import Segment
from subcompress.lazy import torch
from subcompress.operators import ExactOperator, HadamardBlocks

if TYPE_CHECKING:
    from torch import Tensor


def fill_on_host(operator: ExactOperator, c: np.ndarray | Tensor, segments: Sequence[Segment]) -> None:
    """Weights on the CPU."""
    fast = kernels.on_cpu() if isinstance(operator, HadamardBlocks) else None
    (numpy_backend if fast is None else fast).fill(operator, c, segments)


def fill(operator: ExactOperator, c: Tensor, segments: Sequence[Segment]) -> None:
    """Weights on the device of c."""
    with torch.no_grad():
        fast = kernels.kernel(c.device, operator, False) if isinstance(operator, HadamardBlocks) else None
        (torch_backend if fast is None else fast).fill(operator, c, segments)


_SMALL = HadamardBlocks.sized(10_000, 100, 0)
"""What decides whether a backend is there."""

NATIVE = Backend("cpu", HOST, fill_on_host, lambda: kernels.on_cpu() is not None, beside=True, seeds=True)
TRITON = Backend("cuda", Device("cuda"), fill, lambda: kernels.on_cuda(_SMALL, False, torch.device("cuda")) is not None)

"""The kernels of subcompress.operators.kernels, and NumPy or torch for what they do not serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from subcompress.operators import ExactOperator, HadamardBlocks, kernels
from subcompress.operators.kernels import Segment
from subcompress.rebuild.backends import numpy_backend, torch_backend
from subcompress.rebuild.backends.base import Backend
from subcompress.rebuild.backends.memory import HOST, Device
from subcompress.support.lazy import torch

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

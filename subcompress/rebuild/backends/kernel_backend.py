"""Backends that use the compiled kernels, with NumPy or torch for operators that these do not serve."""

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
    """Compute weights on the CPU."""
    fast = kernels.on_cpu() if isinstance(operator, HadamardBlocks) else None
    (numpy_backend if fast is None else fast).fill(operator, c, segments)


def fill(operator: ExactOperator, c: Tensor, segments: Sequence[Segment]) -> None:
    """Compute weights on the device of c."""
    with torch.no_grad():
        fast = kernels.kernel(c.device, operator, False) if isinstance(operator, HadamardBlocks) else None
        (torch_backend if fast is None else fast).fill(operator, c, segments)


_PROBE = HadamardBlocks.sized(10_000, 100, 0)
"""The operator on which availability is tested."""

NATIVE = Backend("cpu", HOST, fill_on_host, lambda: kernels.on_cpu() is not None, concurrent=True, seeds=True)
TRITON = Backend("cuda", Device("cuda"), fill, lambda: kernels.on_cuda(_PROBE, False, torch.device("cuda")) is not None)

"""Backends that use the kernels, with NumPy or torch for operators that these do not serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subcompress.operators import ExactOperator, HadamardBlocks
from subcompress.operators.kernels import Kernel, Segment
from subcompress.rebuild.backends import numpy_backend, torch_backend
from subcompress.rebuild.backends.base import Backend
from subcompress.rebuild.backends.memory import HOST, Device
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_PROBE = HadamardBlocks.sized(10_000, 100, 0)
"""The operator on which availability is tested."""


def of(kernel: Kernel) -> Backend:
    """Return the backend that uses a kernel. On the host it needs no torch."""
    return _on_host(kernel) if kernel.device == "cpu" else _on_device(kernel)


def _on_host(kernel: Kernel) -> Backend:
    def fill(operator: ExactOperator, c: Any, segments: Sequence[Segment]) -> None:
        """Compute weights on the CPU."""
        fast = kernel.module(operator, False, None) if isinstance(operator, HadamardBlocks) else None
        (numpy_backend if fast is None else fast).fill(operator, c, segments)

    return Backend(
        "cpu",
        HOST,
        fill,
        lambda: kernel.module(_PROBE, False, None) is not None,
        concurrent=kernel.concurrent,
        seeds=kernel.seeds,
    )


def _on_device(kernel: Kernel) -> Backend:
    def fill(operator: ExactOperator, c: Tensor, segments: Sequence[Segment]) -> None:
        """Compute weights on the device of c."""
        with torch.no_grad():
            fast = kernel.module(operator, False, c.device) if isinstance(operator, HadamardBlocks) else None
            (torch_backend if fast is None else fast).fill(operator, c, segments)

    return Backend(
        kernel.device,
        Device(kernel.device),
        fill,
        lambda: kernel.module(_PROBE, False, torch.device(kernel.device)) is not None,
        concurrent=kernel.concurrent,
        seeds=kernel.seeds,
    )

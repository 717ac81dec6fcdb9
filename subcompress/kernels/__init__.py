"""Fast paths of operator 1, a module a kind of machine: exact weights, and the products that training takes.

Each has `fill`, `affine` and `adjoint`; what they compute is defined by `HadamardBlocks` and by docs/FORMAT.md. Where
none serves, torch's own operators compute the same.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from subcompress.kernels.compiled import library

MAX_LOG2_M = 15
"""Larger blocks do not fit what a GPU's program holds."""


@dataclass(frozen=True)
class Segment:
    """Rows lo .. lo + len(out) of a group, and where their weights go: out = start + scale * row.

    out: (n,), contiguous, float32, float16, bfloat16 or float64, all segments of a call on one device; start: one
    constant, or (n,) float32 values where out is float32.
    """

    lo: int
    out: Tensor
    scale: float
    start: float | Tensor = 0.0

    @property
    def hi(self) -> int:
        """The row after the last."""
        return self.lo + len(self.out)


Piece = tuple[int, Tensor, float]
"""Numbers for rows lo .. lo + len(g), and what they are multiplied by: (lo, g, scale)."""


def kernel(device: torch.device, log2_m: int, training: bool) -> ModuleType | None:
    """The module that serves blocks of 2^log2_m rows on the device, None where torch's operators must do. training:
    `affine` and `adjoint` are wanted, else `fill`."""
    if device.type == "cpu":
        return on_cpu()
    return on_cuda(log2_m, training, device) if device.type == "cuda" else None


def on_cpu() -> ModuleType | None:
    """`native`, None where it was not compiled."""
    return None if library() is None else importlib.import_module("subcompress.kernels.native")


def on_cuda(log2_m: int = 10, training: bool = False, device: torch.device | None = None) -> ModuleType | None:
    """`triton_hadamard`, None without a CUDA device, and where Triton is not there or cannot compile for it; device:
    the current one if left out."""
    if log2_m > MAX_LOG2_M or not torch.cuda.is_available():
        return None
    try:
        index = torch.cuda.current_device() if device is None or device.index is None else device.index
    except Exception:  # the driver does not answer
        return None
    return _tried(log2_m, training, index)


@functools.cache
def _tried(log2_m: int, training: bool, index: int) -> ModuleType | None:
    try:
        found = importlib.import_module("subcompress.kernels.triton_hadamard")
        with torch.cuda.device(index):
            found.try_out(log2_m, training)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no Triton, no C compiler for its launcher, a device that it does not know: torch serves
        return None
    return found

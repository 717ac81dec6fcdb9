"""Fast kernels of operators 1 and 2, one module for each kind of machine: exact weights, and the products for
training. A new one is one file, and one line in KERNELS.

Each module has `fill`, `affine` and `adjoint`; docs/FORMAT.md and the operator that they are given
say what they compute. Where none serves, torch's own operators compute the same.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from subcompress.native.compiled import library
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MAX_LOG2_M = 15
"""Larger blocks do not fit into the memory of a GPU program."""


@dataclass(frozen=True)
class SeededRows:
    """A varying start: center + scale * integer, the integers being rows from `row` on of an operator without
    coordinates."""

    operator: SignedBlocks
    row: int
    scale: float
    center: float


@dataclass(frozen=True)
class Segment:
    """Rows lo .. lo + len(out) of a group, and where their weights go: out = start + scale * row.

    out: (n,), contiguous, float32, float16, bfloat16 or float64, all segments of a call on one device; on the host an
    array serves as a tensor does, of uint16 for bfloat16. start: one constant, or (n,) float32 values where out is
    float32; `native` takes SeededRows too, where out is not float64.
    """

    lo: int
    out: Any
    scale: float
    start: Any = 0.0

    @property
    def hi(self) -> int:
        """The end of the rows, exclusive."""
        return self.lo + len(self.out)


Piece = tuple[int, "Tensor", float]
"""Numbers for rows lo .. lo + len(g), and what they are multiplied by: (lo, g, scale)."""


class SignedBlocks(Protocol):
    """The attributes of operators 1 and 2 that kernels read; see `subcompress.operators.hadamard`."""

    def __hash__(self) -> int: ...
    @property
    def D(self) -> int: ...
    @property
    def d(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def log2_m(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def A(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def m(self) -> int: ...
    @property
    def free(self) -> int: ...
    @property
    def used(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def columns(self) -> np.ndarray: ...
    def peak(self, c: np.ndarray) -> int: ...
    def rows(self, c: Any, lo: int, hi: int) -> Any: ...
    def rmatvec(self, g: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Kernel:
    """A kernel. device: the kind of device it runs on; concurrent, seeds: see `rebuild.backends.base.Backend`.

    module: returns its module for an operator on a device (None on the host, which needs no torch), or None if it
    cannot run. The truth value says what for: `affine` and `adjoint`, which train, or `fill`.
    """

    device: str
    module: Callable[[SignedBlocks, bool, torch.device | None], ModuleType | None]
    concurrent: bool = False
    seeds: bool = False


def kernel(device: torch.device, op: SignedBlocks, training: bool) -> ModuleType | None:
    """Return the fastest module that serves the operator on the device, None if there is none."""
    for found in reversed(KERNELS.values()):
        if found.device == device.type and (module := found.module(op, training, device)) is not None:
            return module
    return None


def _native(op: SignedBlocks, training: bool, device: torch.device | None) -> ModuleType | None:
    """Return `native`, None if it was not compiled."""
    return None if library() is None else importlib.import_module("subcompress.operators.kernels.native")


def _triton(op: SignedBlocks, training: bool, device: torch.device | None) -> ModuleType | None:
    """Return `triton_hadamard`, None without a CUDA device or if Triton is missing or cannot compile for it."""
    if op.log2_m > MAX_LOG2_M or not torch.cuda.is_available():
        return None
    try:
        index = torch.cuda.current_device() if device is None or device.index is None else device.index
    except Exception:  # the driver does not answer
        return None
    return _tried(type(op), op.log2_m, training, index)


@functools.cache
def _tried(make: Callable[..., SignedBlocks], log2_m: int, training: bool, index: int) -> ModuleType | None:
    try:
        found = importlib.import_module("subcompress.operators.kernels.triton_hadamard")
        with torch.cuda.device(index):
            found.try_out(make, log2_m, training)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # no Triton, no C compiler for its launcher, a device that it does not know: torch serves
        return None
    return found


KERNELS: dict[str, Kernel] = {
    "native": Kernel("cpu", _native, concurrent=True, seeds=True),
    "triton": Kernel("cuda", _triton),
}
"""The kernels by name. Of those for the same kind of device, the last is the fastest. `rebuild.backends` wraps each."""

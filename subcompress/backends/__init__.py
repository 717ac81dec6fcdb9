"""Backends by name: each turns a record into tensors. A new one is one file and one line here."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from subcompress.backends import numpy_backend, torch_backend
from subcompress.layout import TensorSpec
from subcompress.record import Record

Tensors = Iterator[tuple[TensorSpec, Tensor]]

BACKENDS: dict[str, Callable[[Record], Tensors]] = {
    "numpy": numpy_backend.tensors,
    "torch": torch_backend.on("cpu"),
    "torch-cuda": torch_backend.on("cuda"),
}


def available() -> list[str]:
    """The backends that can run on this machine."""
    return [name for name in BACKENDS if name != "torch-cuda" or torch.cuda.is_available()]


__all__ = ["BACKENDS", "Tensors", "available"]

"""Layouts: the names, dtypes and shapes of a state dict, in order, which suffice to rebuild it without any code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.support.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
}
"""The names that safetensors uses -> NumPy's dtype. NumPy lacks bfloat16: BF16 is uint16, the dtype of its bits, which
no other name maps to. The order is part of the format."""

CODED_DTYPES = ("F32", "F16", "BF16", "F64", "C64")


@cache
def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype for a dtype's name."""
    found: torch.dtype = getattr(torch, "bfloat16" if name == "BF16" else DTYPES[name].name)
    return found


@cache
def _names() -> dict[torch.dtype, str]:
    return {torch_dtype(name): name for name in DTYPES}


_OF_ARRAYS = {dtype: name for name, dtype in DTYPES.items()}


def _name(values: Tensor | np.ndarray) -> str | None:
    return _OF_ARRAYS.get(values.dtype) if isinstance(values, np.ndarray) else _names().get(values.dtype)


MAX_NAME = 1 << 10
"""The largest length of a name in a file, in bytes."""


def is_storable(tensor: Tensor) -> bool:
    """Return whether a safetensors file, and so a checkpoint, can hold the tensor."""
    return tensor.layout == torch.strided and _name(tensor) is not None


def is_valid_name(name: str) -> bool:
    """Return whether a tensor may have this name: no control characters, and not the key safetensors reserves."""
    return name != "__metadata__" and (not name or min(name) >= " ")


def is_valid_text(text: str) -> bool:
    """Return whether a file can hold the text as a name: UTF-8 of at most MAX_NAME bytes, no control characters."""
    try:
        return len(text.encode()) <= MAX_NAME and (not text or min(text) >= " ")
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True)
class TensorSpec:
    """One entry of a state dict."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of values in the tensor."""
        return math.prod(self.shape)

    @property
    def reals(self) -> int:
        """The number of real numbers in the tensor: two for each complex value."""
        return self.size * (2 if self.dtype == "C64" else 1)

    @property
    def real_dtype(self) -> str:
        """The dtype of its real numbers."""
        return "F32" if self.dtype == "C64" else self.dtype

    @property
    def nbytes(self) -> int:
        """The bytes of the dense tensor."""
        return self.size * DTYPES[self.dtype].itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's."""
        return torch_dtype(self.dtype)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Layout:
    """The tensors of a state dict, in order."""

    tensors: tuple[TensorSpec, ...]

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """The bytes of all dense tensors, without headers."""
        return sum(t.nbytes for t in self)

    def text(self) -> bytes:
        """Return the text that is hashed: one line per tensor, `name dtype d0,d1,...`."""
        return "".join(f"{t.name} {t.dtype} {','.join(map(str, t.shape))}\n" for t in self).encode()

    @classmethod
    def of(cls, state: Mapping[str, Tensor | np.ndarray]) -> Layout:
        """Return the layout of a state dict of tensors or arrays. Raises SubcompressError for an unsupported dtype."""
        specs = []
        for name, tensor in state.items():
            if not is_valid_name(name):
                raise SubcompressError(
                    f"a tensor's name must not be __metadata__ or have control characters; got {name!r}: rename it"
                )
            if (dtype := _name(tensor)) is None:
                raise SubcompressError(
                    f"tensors must be of {', '.join(DTYPES)}; {name} is {tensor.dtype}: convert it before fitting"
                )
            specs.append(TensorSpec(name, dtype, tuple(tensor.shape)))
        return cls(tuple(specs))

    def require(self, other: Layout, what: str) -> None:
        """Raise SubcompressError, naming the first difference, unless `other` (called `what`) is the same layout."""
        expected, given = {t.name: t for t in self}, {t.name: t for t in other}
        for name, spec in expected.items():
            if name not in given:
                raise SubcompressError(
                    f"the file holds {spec}, which {what} lacks: give the model the file was made from"
                )
            if given[name] != spec:
                raise SubcompressError(
                    f"the file holds {spec}, but {what} has {given[name]}: give the model the file was made from"
                )
        for name, spec in given.items():
            if name not in expected:
                raise SubcompressError(
                    f"{what} has {spec}, which the file lacks: give the model the file was made from"
                )


def array_of(values: Tensor | np.ndarray) -> np.ndarray:
    """Return values as an array in row-major order, without a copy if they already lie so in CPU memory."""
    if isinstance(values, np.ndarray):
        return values
    tensor = values.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def tensor_of(array: np.ndarray) -> Tensor:
    """Return an array as a tensor, without a copy if the array is writable."""
    tensor: Tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == DTYPES["BF16"] else tensor


def raw_bytes(values: Tensor | np.ndarray) -> memoryview:
    """Return the bytes of the values in row-major order."""
    return np.ascontiguousarray(array_of(values)).reshape(-1).view(np.uint8).data

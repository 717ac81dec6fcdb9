"""The names, dtypes and shapes of a state dict, in its order: what a file must know to rebuild it without any code."""

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
"""safetensors' names, with NumPy's dtype: that of its bits for BF16, which NumPy lacks, and no other is uint16. The
order is part of the format."""

CODED_DTYPES = ("F32", "F16", "BF16", "F64", "C64")


@cache
def torch_dtype(name: str) -> torch.dtype:
    """What torch calls it."""
    found: torch.dtype = getattr(torch, "bfloat16" if name == "BF16" else DTYPES[name].name)
    return found


@cache
def _names() -> dict[torch.dtype, str]:
    return {torch_dtype(name): name for name in DTYPES}


_OF_ARRAYS = {dtype: name for name, dtype in DTYPES.items()}


def _name(values: Tensor | np.ndarray) -> str | None:
    return _OF_ARRAYS.get(values.dtype) if isinstance(values, np.ndarray) else _names().get(values.dtype)


MAX_NAME = 1 << 10
"""Bytes of a name in a file."""


def is_storable(tensor: Tensor) -> bool:
    """Whether a safetensors file, and so a checkpoint, can hold the tensor."""
    return tensor.layout == torch.strided and _name(tensor) is not None


def is_valid_name(name: str) -> bool:
    """Whether a tensor may be called so: no control characters, and not the one key that safetensors keeps."""
    return name != "__metadata__" and (not name or min(name) >= " ")


def is_valid_text(text: str) -> bool:
    """Whether a file can hold it as a name: UTF-8 of at most MAX_NAME bytes, no control characters."""
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
        """Values in the tensor."""
        return math.prod(self.shape)

    @property
    def reals(self) -> int:
        """Real numbers in the tensor: two a complex value."""
        return self.size * (2 if self.dtype == "C64" else 1)

    @property
    def real_dtype(self) -> str:
        """The dtype of its real numbers."""
        return "F32" if self.dtype == "C64" else self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when dense."""
        return self.size * DTYPES[self.dtype].itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return torch_dtype(self.dtype)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Layout:
    """The entries of a state dict, in its order."""

    tensors: tuple[TensorSpec, ...]

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors when dense, headers not counted."""
        return sum(t.nbytes for t in self)

    def text(self) -> bytes:
        """One line a tensor, for digests: `name dtype d0,d1,...`."""
        return "".join(f"{t.name} {t.dtype} {','.join(map(str, t.shape))}\n" for t in self).encode()

    @classmethod
    def of(cls, state: Mapping[str, Tensor | np.ndarray]) -> Layout:
        """The layout of a state dict, of tensors or of arrays. Raises SubcompressError for a dtype that the format does
        not hold."""
        specs = []
        for name, tensor in state.items():
            if not is_valid_name(name):
                raise SubcompressError(
                    f"a tensor's name has no control characters and is not __metadata__; given {name!r}: rename it"
                )
            if (dtype := _name(tensor)) is None:
                raise SubcompressError(
                    f"tensors are of {', '.join(DTYPES)}; {name} is {tensor.dtype}: convert it before fitting"
                )
            specs.append(TensorSpec(name, dtype, tuple(tensor.shape)))
        return cls(tuple(specs))

    def require(self, other: Layout, what: str) -> None:
        """Raise SubcompressError, naming the first difference, unless `other` (called `what`) is the same layout."""
        mine, theirs = {t.name: t for t in self}, {t.name: t for t in other}
        for name, spec in mine.items():
            if name not in theirs:
                raise SubcompressError(
                    f"the file holds {spec}, which {what} lacks: give the model the file was made from"
                )
            if theirs[name] != spec:
                raise SubcompressError(
                    f"the file holds {spec}, {what} has {theirs[name]}: give the model the file was made from"
                )
        for name, spec in theirs.items():
            if name not in mine:
                raise SubcompressError(
                    f"{what} has {spec}, which the file lacks: give the model the file was made from"
                )


def array_of(values: Tensor | np.ndarray) -> np.ndarray:
    """A tensor's values as an array in row-major order, in the tensor's own memory where they lie so on the host."""
    if isinstance(values, np.ndarray):
        return values
    tensor = values.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def tensor_of(array: np.ndarray) -> Tensor:
    """An array as a tensor, in the same memory where that may be written to."""
    tensor: Tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if array.dtype == DTYPES["BF16"] else tensor


def raw_bytes(values: Tensor | np.ndarray) -> memoryview:
    """The bytes of values in row-major order."""
    return np.ascontiguousarray(array_of(values)).reshape(-1).view(np.uint8).data

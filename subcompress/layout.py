"""The names, dtypes and shapes of a state dict, in its order: what a file must know to rebuild it without any code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from subcompress.errors import SubcompressError

DTYPES: dict[str, tuple[torch.dtype, int]] = {
    "F32": (torch.float32, 4),
    "F16": (torch.float16, 2),
    "BF16": (torch.bfloat16, 2),
    "F64": (torch.float64, 8),
    "I64": (torch.int64, 8),
    "I32": (torch.int32, 4),
    "I16": (torch.int16, 2),
    "I8": (torch.int8, 1),
    "U8": (torch.uint8, 1),
    "BOOL": (torch.bool, 1),
    "C64": (torch.complex64, 8),
}
"""safetensors' names, with torch's dtype and the bytes of one value. The order is part of the format."""

CODED_DTYPES = ("F32", "F16", "BF16", "F64", "C64")
_NAMES = {torch_dtype: name for name, (torch_dtype, _) in DTYPES.items()}


MAX_NAME = 1 << 10
"""Bytes of a name in a file."""


def holdable(tensor: Tensor) -> bool:
    """Whether a safetensors file, and so a checkpoint, can hold the tensor."""
    return tensor.layout == torch.strided and tensor.dtype in _NAMES


def sound_name(name: str) -> bool:
    """Whether a tensor may be called so: no control characters, and not the one key that safetensors keeps."""
    return name != "__metadata__" and all(character >= " " for character in name)


def sound_text(text: str) -> bool:
    """Whether a file can hold it as a name: UTF-8 of at most MAX_NAME bytes, no control characters."""
    try:
        return len(text.encode()) <= MAX_NAME and all(character >= " " for character in text)
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
    def real_dtype(self) -> torch.dtype:
        """The dtype of its real numbers."""
        return torch.float32 if self.dtype == "C64" else self.torch_dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when dense."""
        return self.size * DTYPES[self.dtype][1]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return DTYPES[self.dtype][0]

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
    def of(cls, state: Mapping[str, Tensor]) -> Layout:
        """The layout of a state dict. Raises SubcompressError for a dtype that the format does not hold."""
        specs = []
        for name, tensor in state.items():
            if not sound_name(name):
                raise SubcompressError(
                    f"a tensor's name has no control characters and is not __metadata__; given {name!r}: rename it"
                )
            if tensor.dtype not in _NAMES:
                raise SubcompressError(
                    f"tensors are of {', '.join(DTYPES)}; {name} is {tensor.dtype}: convert it before fitting"
                )
            specs.append(TensorSpec(name, _NAMES[tensor.dtype], tuple(tensor.shape)))
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


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values in row-major order."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # A single value is contiguous whatever its strides are, and no view of them.
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().data

"""Where a backend keeps values: NumPy arrays on the CPU, or torch tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from subcompress.operators import factors
from subcompress.support.lazy import torch
from subcompress.tensors.layout import DTYPES, array_of, tensor_of, torch_dtype
from subcompress.tensors.rounding import TINY, rounded

if TYPE_CHECKING:
    from torch import Tensor


class Memory(Protocol):
    """Operations on values of the format's dtypes. Arrays are on the CPU."""

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """Allocate values without initializing them."""

    def view(self, raw: Any, dtype: str) -> Any:
        """View (n,) U8 values as another dtype."""

    def reals(self, values: Any) -> Any:
        """View values as flat real numbers; a complex value is two."""

    def of(self, values: Any) -> Any:
        """Convert an array or a tensor to values here, without a copy if they are on the device already."""

    def put(self, place: Any, values: np.ndarray) -> None:
        """Copy an array into `place`, of the same shape, rounding to its dtype."""

    def address(self, values: Any) -> int:
        """Return the address of the first value."""

    def scatter(self, place: Any, at: np.ndarray, values: Any) -> None:
        """Copy (n,) values to the (n,) indices `at` of `place`."""

    def add_base(self, place: Any, values: Any, base: Any) -> None:
        """Write base + values, all (n,), to `place`.

        The sum is rounded once, in float64 for a float64 place and otherwise in float32, and then to the place's dtype.
        values: scale * integer, exact, in float32 or in the place itself; they are overwritten. Float32 values below
        2^-126 count as zero, before and after.
        """

    def add_product(self, place: Any, base: np.ndarray, left: Any, right: Any, skipped: int) -> None:
        """Write base + left right to `place`, see `subcompress.operators.factors`. place, base: (n,), the values of the
        product from number `skipped` on."""

    def array(self, values: Any) -> np.ndarray:
        """Return the values as an array on the CPU."""


class Host:
    """NumPy arrays; bfloat16 is the uint16 of its bits."""

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return np.empty(shape, DTYPES[dtype])

    def view(self, raw: np.ndarray, dtype: str) -> np.ndarray:
        return raw.view(DTYPES[dtype])

    def reals(self, values: np.ndarray) -> np.ndarray:
        assert values.flags.c_contiguous, "a copy would be written to"
        flat = values.reshape(-1)
        return flat.view(np.float32) if flat.dtype == np.complex64 else flat

    def of(self, values: np.ndarray | Tensor) -> np.ndarray:
        if isinstance(values, np.ndarray):
            return values
        tensor = values.detach()
        return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()

    def put(self, place: np.ndarray, values: np.ndarray) -> None:
        np.copyto(place, rounded(values, place.dtype))

    def address(self, values: np.ndarray) -> int:
        return int(values.__array_interface__["data"][0])

    def scatter(self, place: np.ndarray, at: np.ndarray, values: np.ndarray) -> None:
        place[at] = values

    def add_base(self, place: np.ndarray, values: np.ndarray, base: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            if values.dtype == np.float64:
                values += base
            else:
                base = rounded(base, DTYPES["F32"])
                values += np.where(np.abs(base) >= TINY, base, np.float32(0))
                values[np.abs(values) < TINY] = 0
        if values is not place:
            self.put(place, values)

    def add_product(
        self, place: np.ndarray, base: np.ndarray, left: np.ndarray, right: np.ndarray, skipped: int
    ) -> None:
        factors.add_product(place, base, left, right, skipped)

    def array(self, values: np.ndarray) -> np.ndarray:
        return values


class Device:
    """Torch tensors on a device."""

    def __init__(self, name: str) -> None:
        self.name = name

    def empty(self, shape: Sequence[int], dtype: str) -> Tensor:
        return torch.empty(tuple(shape), dtype=torch_dtype(dtype), device=self.name)

    def view(self, raw: Tensor, dtype: str) -> Tensor:
        return raw.view(torch_dtype(dtype))

    def reals(self, values: Tensor) -> Tensor:
        return (torch.view_as_real(values) if values.is_complex() else values).view(-1)

    def of(self, values: np.ndarray | Tensor) -> Tensor:
        return (tensor_of(values) if isinstance(values, np.ndarray) else values).to(self.name)

    def put(self, place: Tensor, values: np.ndarray) -> None:
        place.copy_(tensor_of(values))

    def address(self, values: Tensor) -> int:
        return values.data_ptr()

    def scatter(self, place: Tensor, at: np.ndarray, values: Tensor) -> None:
        place[tensor_of(at).to(place.device)] = values

    def add_base(self, place: Tensor, values: Tensor, base: np.ndarray | Tensor) -> None:
        moved = self.of(base)
        if values.dtype == torch.float64:
            values.add_(moved)
        else:
            moved = moved.float()
            values.add_(moved.where(moved.abs() >= TINY, 0.0))
            values.masked_fill_(values.abs() < TINY, 0.0)
        if values is not place:
            place.copy_(values)

    def add_product(self, place: Tensor, base: np.ndarray, left: Tensor, right: Tensor, skipped: int) -> None:
        factors.add_product_of_tensors(place, self.of(base), left, right, skipped)

    def array(self, values: Tensor) -> np.ndarray:
        return array_of(values)


HOST = Host()

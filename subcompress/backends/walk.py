"""The walk every backend takes through a record: tensor by tensor, a bounded number of weights at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subcompress.layout import TensorSpec
from subcompress.operators import ExactOperator
from subcompress.operators.base import CHUNK
from subcompress.record import Coded, Record, Same


class Rows:
    """The integers of a group, front to back: each chunk is expanded once, however many tensors share it."""

    def __init__(self, operator: ExactOperator, coordinates: Any) -> None:
        self.operator, self.coordinates = operator, coordinates
        self.chunk = max(CHUNK, operator.block)
        self.at, self._number = 0, -1
        self._chunk: Any = None

    def take(self, n: int) -> Iterator[tuple[slice, Any]]:
        """The next n rows in pieces: where a piece goes within them, and its integers."""
        first, end = self.at, self.at + n
        while self.at < end:
            number = self.at // self.chunk
            base = number * self.chunk
            if number != self._number:
                self._chunk = self.operator.rows(self.coordinates, base, min(base + self.chunk, self.operator.D))
                self._number = number
            stop = min(base + self.chunk, end)
            yield slice(self.at - first, stop - first), self._chunk[self.at - base : stop - base]
            self.at = stop


def entries(record: Record) -> Iterator[tuple[TensorSpec, Coded | Tensor]]:
    """Each tensor's spec with its entry, or with its values where they are stored; tied ones are left out."""
    at = 0
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Same):
            continue
        if isinstance(entry, Coded):
            yield spec, entry
            continue
        tensor = torch.empty(spec.shape, dtype=spec.torch_dtype)
        if spec.nbytes:
            raw = np.frombuffer(record.stored, np.uint8, spec.nbytes, at).copy()
            tensor = torch.from_numpy(raw).view(spec.torch_dtype).reshape(spec.shape)
        yield spec, tensor
        at += spec.nbytes

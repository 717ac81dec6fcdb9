"""torch on any device: float64 products of small Hadamard factors, exact for the format's integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from subcompress.backends.walk import chunks, entries
from subcompress.layout import TensorSpec
from subcompress.record import Coded, Record


def on(device: str) -> Callable[[Record], Iterator[tuple[TensorSpec, Tensor]]]:
    """The backend for that device."""

    @torch.no_grad()
    def tensors(record: Record) -> Iterator[tuple[TensorSpec, Tensor]]:
        coordinates = [torch.from_numpy(g.coordinates).to(device) for g in record.groups]
        for spec, entry, first in entries(record):
            if isinstance(entry, Coded):
                yield spec, _coded(record, coordinates[entry.group], spec, entry, first)
            else:
                yield spec, entry.to(device)

    return tensors


def _coded(record: Record, c: Tensor, spec: TensorSpec, entry: Coded, first: int) -> Tensor:
    operator = record.groups[entry.group].operator
    theta = torch.empty(spec.size, dtype=spec.torch_dtype, device=c.device)
    for lo, hi in chunks(spec.size, first):
        # scale * w is exact in float32, so the one rounding is the sum's, fused or not.
        theta[lo - first : hi - first] = operator.rows(c, lo, hi).mul_(entry.scale).add_(entry.start)
    return theta.view(spec.shape)

"""torch on any device: float64 products of small Hadamard factors, exact for the format's integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from subcompress.backends.walk import Rows, entries
from subcompress.layout import TensorSpec
from subcompress.record import Coded, Record


def on(device: str) -> Callable[[Record], Iterator[tuple[TensorSpec, Tensor]]]:
    """The backend for that device."""

    @torch.no_grad()
    def tensors(record: Record) -> Iterator[tuple[TensorSpec, Tensor]]:
        rows = [Rows(g.operator, torch.from_numpy(g.coordinates).to(device)) for g in record.groups]
        for spec, entry in entries(record):
            if isinstance(entry, Coded):
                yield spec, _coded(rows[entry.group], spec, entry, device)
            else:
                yield spec, entry.to(device)

    return tensors


def _coded(rows: Rows, spec: TensorSpec, entry: Coded, device: str) -> Tensor:
    dtype = torch.float32 if spec.dtype == "C64" else spec.torch_dtype
    theta = torch.empty(spec.reals, dtype=dtype, device=device)
    for place, w in rows.take(spec.reals):
        # scale * w is exact in float32, so the one rounding is the sum's, fused or not.
        theta[place] = (w * entry.scale).add_(entry.start)
    if spec.dtype == "C64":
        theta = torch.view_as_complex(theta.view(-1, 2))
    return theta.view(spec.shape)

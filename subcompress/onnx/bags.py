"""Embedding bags in ONNX graphs.

The exporter turns `embedding_bag` into a loop over a sequence of tensors, which crashes ONNX Runtime; within
`plain_bags` it becomes a gather and a reduction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SUM, MEAN, MAX = range(3)
_MODES = {"sum": SUM, "mean": MEAN, "max": MAX}


@contextmanager
def plain_bags() -> Iterator[None]:
    """Decompose `embedding_bag`, in layers and as a function, into plain operators for torch.export within the
    block."""
    of_rows, of_torch = functional.embedding_bag, torch.embedding_bag
    names, torchs = vars(functional), vars(torch)

    def rows(input: Tensor, weight: Tensor, offsets: Tensor | None = None, *args: Any, **named: Any) -> Tensor:
        given = dict(zip(_REST, args, strict=False)) | named
        if input.ndim != 2 or given.get("max_norm") is not None:
            return of_rows(input, weight, offsets, *args, **named)
        found, inside = _gathered(weight, input, given.get("padding_idx"), given.get("per_sample_weights"))
        return _reduced(found, inside, _MODES[given.get("mode", "mean")])

    try:
        names["embedding_bag"], torchs["embedding_bag"] = rows, _flat
        yield
    finally:
        names["embedding_bag"], torchs["embedding_bag"] = of_rows, of_torch


_REST = (
    "max_norm",
    "norm_type",
    "scale_grad_by_freq",
    "mode",
    "sparse",
    "per_sample_weights",
    "include_last_offset",
    "padding_idx",
)
"""Arguments of `embedding_bag` after its offsets."""


def _flat(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`torch.embedding_bag` of a row of indices (L,) and the beginnings of the bags (B,).

    Returns the result (B, F), and three tensors that only a backward pass reads.
    """
    begins = offsets[:-1] if include_last_offset else offsets
    found, inside = _gathered(weight, indices, padding_idx, per_sample_weights)
    bag = (torch.arange(indices.shape[0])[:, None] >= begins).sum(1) - 1  # (L,)
    member = (bag == torch.arange(begins.shape[0])[:, None]) & inside  # (B, L)
    if mode == MAX:
        return _reduced(found[None], member, MAX), offsets, offsets, offsets
    total = member.to(found.dtype) @ found
    return (_mean(total, member) if mode == MEAN else total), offsets, offsets, offsets


def _gathered(weight: Tensor, indices: Tensor, padding: int | None, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return rows of the table (..., F), and a mask of those that count."""
    found = functional.embedding(indices, weight)
    if factors is not None:
        found = found * factors.reshape(indices.shape)[..., None]
    if padding is None:
        return found, torch.ones_like(indices, dtype=torch.bool)
    return found, indices != (padding if padding >= 0 else padding + weight.shape[0])


def _reduced(rows: Tensor, inside: Tensor, mode: int) -> Tensor:
    """Reduce (..., L, F) under the mask (..., L) to (..., F); zero for an empty bag."""
    if mode == MAX:
        found = rows.masked_fill(~inside[..., None], -torch.inf).amax(-2)
        return found.masked_fill(~inside.any(-1, keepdim=True), 0)
    total = (rows * inside[..., None].to(rows.dtype)).sum(-2)
    return _mean(total, inside) if mode == MEAN else total


def _mean(total: Tensor, inside: Tensor) -> Tensor:
    return total / inside.sum(-1, keepdim=True).clamp(min=1).to(total.dtype)

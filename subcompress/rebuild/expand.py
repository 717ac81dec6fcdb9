"""Rebuilding a record's weights as torch tensors, and checking them against the digest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from subcompress.format.record import Record, Tied, Unchanged
from subcompress.rebuild.arrays import check_digest, check_memory
from subcompress.rebuild.backends import Backend, backend_of
from subcompress.rebuild.filling import fill
from subcompress.tensors.digest import weights_digest
from subcompress.tensors.layout import raw_bytes


def expand(record: Record, backend: str = "cpu") -> dict[str, Tensor]:
    """Rebuild the state dict, name -> tensor on the backend's device; all backends give the same bits.

    Tied tensors are one object. backend: one of BACKENDS, or "cpu" or "cuda" for the fastest there. Raises
    SubcompressError for an unknown backend, and for weights that exceed this machine's memory.
    """
    chosen = backend_of(backend)
    check_memory(record.layout.nbytes)
    state: dict[str, Tensor] = {}
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Tied):
            state[spec.name] = state[record.layout.tensors[entry.index].name]
        else:
            state[spec.name] = torch.empty(spec.shape, dtype=spec.torch_dtype, device=chosen.device)
    _fill(record, state, chosen)
    return state


def expand_into(record: Record, state: Mapping[str, Tensor]) -> None:
    """Rebuild into existing tensors, contiguous, of the record's dtypes and shapes, on one device; allocates nothing.

    Raises SubcompressError if no backend runs on that device.
    """
    device = next(iter(state.values())).device if state else torch.device("cpu")
    _fill(record, state, backend_of(device.type).on(device))


def expand_changed(record: Record, state: Mapping[str, Tensor]) -> None:
    """Rebuild, like `expand_into`, only the tensors that differ from the base; `state` may lack the others, and those
    that are tied."""
    device = next(iter(state.values())).device if state else torch.device("cpu")
    _fill(record, state, backend_of(device.type).on(device), unchanged=False)


def _fill(record: Record, state: Mapping[str, Tensor], backend: Backend, unchanged: bool = True) -> None:
    written = (
        s.name
        for s, e in zip(record.layout, record.entries, strict=True)
        if unchanged or not (isinstance(e, Unchanged) or (isinstance(e, Tied) and s.name not in state))
    )
    with torch.no_grad():
        fill(record, {name: backend.memory.of(state[name]) for name in written}, backend, unchanged=unchanged)


def digest_of(record: Record, state: dict[str, Tensor]) -> bytes:
    """Compute the digest of a state dict under the record's layout."""
    return weights_digest(record.layout, {name: raw_bytes(tensor) for name, tensor in state.items()})


def expand_checked(record: Record, backend: str = "cpu") -> dict[str, Tensor]:
    """Rebuild like `expand`. Raises SubcompressError unless the weights have the digest in the file."""
    state = expand(record, backend)
    check_digest(record, digest_of(record, state))
    return state

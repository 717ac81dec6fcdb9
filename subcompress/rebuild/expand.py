"""From a record to weights in memory: the tensors themselves, and whether they are the ones that were packed."""

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
    """Every tensor of the state dict, name -> tensor on the backend's device, the same bits on each of them. Tied
    tensors are one and the same.

    backend: one of BACKENDS, or the fastest for "cpu" or "cuda". Raises SubcompressError for an unknown one, and for
    weights that this machine's memory cannot hold.
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
    """`expand` into tensors at hand, contiguous, of the record's dtypes and shapes and all of one device: no other
    memory is taken. Raises SubcompressError where no backend runs on that device."""
    device = next(iter(state.values())).device if state else torch.device("cpu")
    _fill(record, state, backend_of(device.type).on(device))


def expand_changed(record: Record, state: Mapping[str, Tensor]) -> None:
    """`expand_into` for the tensors of the record that differ from the base; `state` may lack the others."""
    device = next(iter(state.values())).device if state else torch.device("cpu")
    _fill(record, state, backend_of(device.type).on(device), kept=False)


def _fill(record: Record, state: Mapping[str, Tensor], backend: Backend, kept: bool = True) -> None:
    written = (
        s.name for s, e in zip(record.layout, record.entries, strict=True) if kept or not isinstance(e, Unchanged)
    )
    with torch.no_grad():
        fill(record, {name: backend.memory.of(state[name]) for name in written}, backend, kept=kept)


def digest_of(record: Record, state: dict[str, Tensor]) -> bytes:
    """The digest of a state dict under the record's layout."""
    return weights_digest(record.layout, {name: raw_bytes(tensor) for name, tensor in state.items()})


def expand_checked(record: Record, backend: str = "cpu") -> dict[str, Tensor]:
    """`expand`, refused unless the digest in the file is the one of what was rebuilt."""
    state = expand(record, backend)
    check_digest(record, digest_of(record, state))
    return state

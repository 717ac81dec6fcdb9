"""From a record to weights in memory: the tensors themselves, and whether they are the ones that were packed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from subcompress.backends import Backend, backend_of
from subcompress.base import OnBase, add_base
from subcompress.digest import weights_digest
from subcompress.errors import SubcompressError
from subcompress.kernels import Segment
from subcompress.layout import raw_bytes
from subcompress.record import Coded, Kept, Record, Same


def expand(record: Record, backend: str = "cpu") -> dict[str, Tensor]:
    """Every tensor of the state dict, name -> tensor on the backend's device, the same bits on each of them. Tied
    tensors are one and the same.

    backend: one of BACKENDS, or the fastest for "cpu" or "cuda". Raises SubcompressError for an unknown one, and for
    weights that this machine's memory cannot hold.
    """
    chosen = backend_of(backend)
    if record.layout.nbytes > (memory := _memory()):
        raise SubcompressError(
            f"weights are rebuilt in memory; this file's take {record.layout.nbytes} bytes, this machine has {memory}: "
            "use a larger one, if the file is to be trusted"
        )
    state: dict[str, Tensor] = {}
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Same):
            state[spec.name] = state[record.layout.tensors[entry.index].name]
        else:
            state[spec.name] = torch.empty(spec.shape, dtype=spec.torch_dtype, device=chosen.device)
    _fill(record, state, chosen, torch.device(chosen.device))
    return state


def expand_into(record: Record, state: Mapping[str, Tensor]) -> None:
    """`expand` into tensors at hand, contiguous, of the record's dtypes and shapes and all of one device: no other
    memory is taken. Raises SubcompressError where no backend runs on that device."""
    device = next(iter(state.values())).device if state else torch.device("cpu")
    _fill(record, state, backend_of(device.type), device)


def expand_acting(record: Record, state: Mapping[str, Tensor]) -> None:
    """`expand_into` for the tensors of the record that differ from the base; `state` may lack the others."""
    device = next(iter(state.values())).device if state else torch.device("cpu")
    _fill(record, state, backend_of(device.type), device, kept=False)


def _fill(
    record: Record, state: Mapping[str, Tensor], backend: Backend, device: torch.device, kept: bool = True
) -> None:
    segments: list[list[Segment]] = [[] for _ in record.groups]
    based: list[tuple[Tensor, Tensor, Tensor]] = []  # what becomes of the values, they, and the base's
    for spec, entry, first in zip(record.layout, record.entries, record.firsts, strict=True):
        if not spec.size or isinstance(entry, Same) or (isinstance(entry, Kept) and not kept):
            continue
        tensor = state[spec.name]
        if isinstance(entry, Coded):
            flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(-1)
            values = flat
            if entry.based:
                values = torch.empty_like(flat, dtype=torch.float32) if flat.itemsize < 4 else flat
                based.append((flat, values, on_base(record).reals(spec.name)))
            segments[entry.group].append(Segment(first, values, entry.scale, entry.start))
        elif isinstance(entry, Kept):
            tensor.copy_(on_base(record).tensor(spec.name))
        else:
            tensor.copy_(stored(record, first, spec.nbytes).view(spec.torch_dtype).view(spec.shape))
    # What is written may lie where the base does.
    ours = {flat.data_ptr() for flat, _, _ in based}
    based = [(flat, values, b.clone() if b.data_ptr() in ours else b) for flat, values, b in based]
    for group, places in zip(record.groups, segments, strict=True):
        backend.fill(group.operator, torch.from_numpy(group.coordinates).to(device), places)
    for flat, values, base in based:
        add_base(values, base.to(device))
        if values is not flat:
            flat.copy_(values)
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Same) and spec.name in state:
            tensor, other = state[spec.name], state.get(record.layout.tensors[entry.index].name)
            if other is not None and tensor.data_ptr() != other.data_ptr():
                tensor.copy_(other)


def on_base(record: Record) -> OnBase:
    """What the record stands on, for one whose `check` has passed."""
    assert record.base is not None, "check() saw to it"
    return record.base


def stored(record: Record, at: int, n: int) -> Tensor:
    """n bytes of the stored tensors, a copy."""
    return torch.from_numpy(np.frombuffer(record.stored, np.uint8, n, at).copy())


def _memory() -> float:
    """Bytes of physical memory, infinite where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def digest_of(record: Record, state: dict[str, Tensor]) -> bytes:
    """The digest of a state dict under the record's layout."""
    return weights_digest(record.layout, {name: raw_bytes(tensor) for name, tensor in state.items()})


def expand_checked(record: Record, backend: str = "cpu") -> dict[str, Tensor]:
    """`expand`, refused unless the digest in the file is the one of what was rebuilt."""
    state = expand(record, backend)
    check_digest(record, digest_of(record, state))
    return state


def check_digest(record: Record, found: bytes) -> None:
    """Raise SubcompressError unless `found` is the digest in the file."""
    if found != record.digest:
        raise SubcompressError(
            f"the rebuilt weights have digest {found.hex()}, the file promises {record.digest.hex()}: "
            "the file is forged or this machine computes wrongly; fetch it again and run `subcompress verify`"
        )

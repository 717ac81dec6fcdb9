"""From a record to weights: the tensors themselves, and whether they are the ones that were packed."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from subcompress.backends import BACKENDS
from subcompress.digest import weights_digest
from subcompress.errors import SubcompressError
from subcompress.record import Record, Same


def expand(record: Record, backend: str = "torch") -> dict[str, Tensor]:
    """Every tensor of the state dict, name -> tensor on the backend's device, the same bits on each of them. Tied
    tensors are one and the same.

    Raises SubcompressError for an unknown backend, and for weights that this machine's memory cannot hold.
    """
    if backend not in BACKENDS:
        raise SubcompressError(f"backends are {', '.join(BACKENDS)}; {backend!r} is none of them")
    if record.layout.nbytes > (memory := _memory()):
        raise SubcompressError(
            f"weights are rebuilt in memory; this file's take {record.layout.nbytes} bytes, this machine has {memory}: "
            "use a larger one, if the file is to be trusted"
        )
    found = {spec.name: tensor for spec, tensor in BACKENDS[backend](record)}
    state: dict[str, Tensor] = {}
    for spec, entry in zip(record.layout, record.entries, strict=True):
        if isinstance(entry, Same):
            state[spec.name] = state[record.layout.tensors[entry.index].name]
        else:
            state[spec.name] = found[spec.name]
    return state


def _memory() -> float:
    """Bytes of physical memory, infinite where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def digest_of(record: Record, state: dict[str, Tensor]) -> bytes:
    """The digest of a state dict under the record's layout."""
    return weights_digest(record.layout, {name: raw_bytes(tensor) for name, tensor in state.items()})


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    return flat.view(torch.uint8).numpy().data


def expand_checked(record: Record, backend: str = "torch") -> dict[str, Tensor]:
    """`expand`, refused unless the digest in the file is the one of what was rebuilt."""
    state = expand(record, backend)
    if (found := digest_of(record, state)) != record.digest:
        raise SubcompressError(
            f"the rebuilt weights have digest {found.hex()}, the file promises {record.digest.hex()}: "
            "the file is forged or this machine computes wrongly; fetch it again and run `subcompress verify`"
        )
    return state

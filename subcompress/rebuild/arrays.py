"""Rebuilding a record's weights as NumPy arrays, on the CPU and without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from subcompress.errors import SubcompressError
from subcompress.format.record import Entry, Factored, Record, Tied, Unchanged
from subcompress.rebuild.backends import host_backend
from subcompress.rebuild.backends.memory import HOST
from subcompress.rebuild.filling import Filling, fill, require_base
from subcompress.tensors.digest import Chunk, chunks_of, hash_chunks, root_digest
from subcompress.tensors.layout import TensorSpec, raw_bytes


def rebuild(record: Record, names: Collection[str] | None = None, *, check: bool = True) -> dict[str, np.ndarray]:
    """Rebuild tensors of the state dict, name -> array, all of them or those in `names`; BF16 is uint16.

    The bits are those of `expand`. Tied tensors are one array. Tensors that are the base's are read-only and, if it has
    their dtype, views of its memory. check: compare the digest of all tensors; the base's are not hashed again. Raises
    SubcompressError for another digest, an unknown name, and weights that exceed this machine's memory.
    """
    layout = record.layout
    order = [spec.name for spec in layout] if names is None else list(names)
    wanted = set(order)
    if unknown := wanted - {spec.name for spec in layout}:
        raise SubcompressError(f"{min(unknown)!r} is none of the {len(layout)} tensors of the file: name another")
    wanted |= {layout.tensors[e.index].name for s, e in _pairs(record) if isinstance(e, Tied) and s.name in wanted}
    check_memory(sum(s.nbytes for s, e in _pairs(record) if not isinstance(e, (Unchanged, Tied))))
    state: dict[str, np.ndarray] = {}
    for spec, entry in _pairs(record):
        if isinstance(entry, Tied):
            if (first := layout.tensors[entry.index].name) in state:
                state[spec.name] = state[first]
        elif isinstance(entry, Unchanged):
            if spec.name in wanted or (check and require_base(record).chunk_digest(spec.name, 0) is None):
                state[spec.name] = require_base(record).array(spec.name)
        elif check or spec.name in wanted:
            state[spec.name] = HOST.empty(spec.shape, spec.dtype)
    fill(record, state, host_backend(), unchanged=False)
    if check:
        check_digest(record, _digest(record, state))
    return {name: state[name] for name in order}


def factors_of(record: Record, name: str) -> list[np.ndarray]:
    """Rebuild the factors that are added to a matrix: the right one, (rank, columns) float32, and the left one, (rows,
    rank). Raises SubcompressError for a tensor without factors."""
    numbers = {spec.name: i for i, spec in enumerate(record.layout)}
    i = numbers.get(name, -1)
    if i < 0 or not isinstance(record.entries[i], Factored):
        raise SubcompressError(f"{name} has no factors, because coordinates do not act on it through any")
    filling = Filling(record, host_backend(), [group.coordinates for group in record.groups])
    found = filling.factors(i)
    filling.write()
    return found


def changed_names(record: Record) -> tuple[str, ...]:
    """Return the names of the tensors that are not simply the base's."""
    return tuple(spec.name for spec, entry in _pairs(record) if not isinstance(entry, Unchanged))


def check_memory(nbytes: int) -> None:
    """Raise SubcompressError for weights that are larger than this machine's memory."""
    if nbytes > (memory := _physical_memory()):
        raise SubcompressError(
            f"the weights of this file take {nbytes} bytes, and this machine has {memory} of memory: use a "
            "larger machine, if you trust the file"
        )


def _physical_memory() -> float:
    """Return the bytes of physical memory, infinite if the system does not tell."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_digest(record: Record, found: bytes) -> None:
    """Raise SubcompressError unless `found` is the digest in the file."""
    if found != record.digest:
        raise SubcompressError(
            f"the rebuilt weights have digest {found.hex()}, but the file states {record.digest.hex()}: the "
            "file is forged or this machine computes wrongly; fetch it again and run `subcompress verify`"
        )


def _digest(record: Record, state: Mapping[str, np.ndarray]) -> bytes:
    """Compute the digest of all tensors; `state` may lack those whose chunk digests the base knows."""
    specs, chunks = record.layout.tensors, list(chunks_of(record.layout))
    digests = [b""] * len(chunks)
    todo: list[Chunk] = []
    for chunk in chunks:
        spec, entry = specs[chunk.index], record.entries[chunk.index]
        if isinstance(entry, Unchanged) and (known := require_base(record).chunk_digest(spec.name, chunk.at)):
            digests[chunk.number] = known
        elif not isinstance(entry, Tied):
            todo.append(chunk)
    raw = {chunk.index: raw_bytes(state[specs[chunk.index].name]) for chunk in todo}
    for chunk, digest in zip(todo, hash_chunks([raw[x.index][x.at : x.at + x.size] for x in todo]), strict=True):
        digests[chunk.number] = digest
    numbers = {(chunk.index, chunk.at): chunk.number for chunk in chunks}
    for chunk in chunks:
        if isinstance(entry := record.entries[chunk.index], Tied):
            digests[chunk.number] = digests[numbers[entry.index, chunk.at]]
    return root_digest(record.layout, digests)


def _pairs(record: Record) -> Iterator[tuple[TensorSpec, Entry]]:
    return zip(record.layout, record.entries, strict=True)

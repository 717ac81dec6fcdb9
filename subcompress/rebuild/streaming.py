"""Rebuilding weights of any size in bounded memory, one chunk of the digest at a time.

Chunks are independent, so each thread expands, hashes and passes on its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np

from subcompress.format.record import Coded, Factored, Mixed, Record, Stored, Tied, Unchanged
from subcompress.rebuild.backends import backend_of
from subcompress.rebuild.filling import Filling, require_base, stored_values
from subcompress.support.threads import for_each
from subcompress.tensors.digest import CHUNK, Chunk, chunk_digest, chunks_of, root_digest
from subcompress.tensors.layout import raw_bytes

ALIGN = 64


Sink = Callable[[Chunk, np.ndarray], None]
"""Receives a chunk and its (n,) values, complex ones as pairs, BF16 as uint16; called by several threads, in any
order."""


def stream(
    record: Record, sink: Sink | None = None, *, backend: str = "cpu", done: Callable[[int], None] | None = None
) -> bytes:
    """Rebuild the weights, pass every chunk to the sink, and return their digest; takes a few chunks of memory per
    thread.

    done: called by any thread with the bytes of chunks that are finished. Raises SubcompressError for an unknown
    backend, and whatever the sink raises.
    """
    chosen = backend_of(backend)
    memory = chosen.memory
    coordinates = [memory.of(g.coordinates) for g in record.groups]
    specs, _ = record.layout.tensors, (record.pieces, record.patterns)  # computed before the threads read them
    # A backend that uses all cores in one call is called by one thread at a time; hashing and writing go on meanwhile.
    compute_lock = nullcontext() if chosen.concurrent else threading.Lock()
    local = threading.local()
    chunks = list(chunks_of(record.layout))
    digests = [b""] * len(chunks)
    tied = _tied(record, chunks)

    def work(batch: list[Chunk]) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = memory.empty((CHUNK + ALIGN,), "U8")
        outputs: list[Any] = []
        filling = Filling(record, chosen, coordinates)
        used = 0
        for chunk in batch:
            spec, entry = specs[chunk.index], record.entries[chunk.index]
            out = memory.view(local.buffer[used : used + chunk.size], spec.real_dtype)
            used += -(-chunk.size // ALIGN) * ALIGN
            at = chunk.at // out.itemsize
            if (
                isinstance(entry, Unchanged)
                and sink is None
                and (known := require_base(record).chunk_digest(spec.name, chunk.at))
            ):
                out = out[:0]
                digests[chunk.number] = known
            elif isinstance(entry, Unchanged):
                out = require_base(record).reals(spec.name, at, len(out))
            elif isinstance(entry, Stored):
                out = stored_values(record, record.stored_at[chunk.index] + chunk.at, chunk.size, spec.real_dtype)
            else:
                filling.add(chunk.index, at, out)
            outputs.append(out)
        with compute_lock:
            filling.write()
            arrays = [out if isinstance(out, np.ndarray) else memory.array(out) for out in outputs]
        for chunk, v in zip(batch, arrays, strict=True):
            found = digests[chunk.number] or chunk_digest(raw_bytes(v))
            for place in (chunk, *tied.get(chunk.number, ())):
                digests[place.number] = found
                if sink is not None:
                    sink(place, v)
                if done is not None:
                    done(place.size)

    for_each(work, _batches(_in_order(record, chunks)))
    return root_digest(record.layout, digests)


def _tied(record: Record, chunks: list[Chunk]) -> dict[int, list[Chunk]]:
    """Map the number of a chunk to the equal chunks of tied tensors."""
    numbers = {(chunk.index, chunk.at): chunk.number for chunk in chunks}
    found: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        if isinstance(entry := record.entries[chunk.index], Tied):
            found.setdefault(numbers[entry.index, chunk.at], []).append(chunk)
    return found


def _in_order(record: Record, chunks: list[Chunk]) -> list[Chunk]:
    """Sort chunks by group and row, so that many small tensors do not each compute a block again.

    Stored chunks come last, and tied ones are left out.
    """

    def place(chunk: Chunk) -> tuple[int, int]:
        entry = record.entries[chunk.index]
        entry = entry.items[0] if isinstance(entry, (Mixed, Factored)) else entry
        return (entry.group if isinstance(entry, Coded) else len(record.groups)), chunk.number

    return sorted((chunk for chunk in chunks if not isinstance(record.entries[chunk.index], Tied)), key=place)


def _batches(chunks: list[Chunk]) -> Iterator[list[Chunk]]:
    """Group chunks into batches that fit one buffer."""
    batch: list[Chunk] = []
    used = 0
    for chunk in chunks:
        aligned = -(-chunk.size // ALIGN) * ALIGN
        if batch and used + aligned > CHUNK:
            yield batch
            batch, used = [], 0
        batch.append(chunk)
        used += aligned
    if batch:
        yield batch
